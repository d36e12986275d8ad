"""Schedules against values computed from their formulas."""

import math

import pytest

from selfsight.method import Clock
from selfsight.schedules import constant, cosine, linear, steps, warmup_cosine


def at(step: int, total: int = 1000, epochs: int = 100) -> Clock:
    return Clock(step=step, steps=total, epoch=step * epochs // total, epochs=epochs)


def test_warmup_cosine_reaches_its_peak_and_its_end() -> None:
    rate = warmup_cosine(4.8, warmup_epochs=10, start=0.3, end=0.0048)
    assert rate(at(0)) == pytest.approx(0.3)
    assert rate(at(50)) == pytest.approx((0.3 + 4.8) / 2)
    assert rate(at(100)) == pytest.approx(4.8)
    assert rate(at(550)) == pytest.approx(0.0048 + (4.8 - 0.0048) / 2)
    assert rate(at(999)) == pytest.approx(0.0048, rel=0.01)


def test_a_short_training_still_reaches_its_peak() -> None:
    rate = warmup_cosine(1.0, warmup_epochs=40)
    values = [rate(at(k, total=50, epochs=5)) for k in range(50)]
    assert max(values) == pytest.approx(1.0)
    assert values.index(max(values)) == 5


def test_a_warm_up_may_take_more_than_a_tenth() -> None:
    rate = warmup_cosine(1.0, warmup_epochs=40, parts=7)
    for epochs, end in ((300, 40), (280, 40), (70, 10)):
        values = [rate(at(k, total=10 * epochs, epochs=epochs)) for k in range(10 * epochs)]
        assert values.index(max(values)) == 10 * end
    assert str(rate) == "warm-up 40 epochs (at most 14%) to 1, cosine"


def test_cosine_is_the_papers_momentum_rule() -> None:
    momentum = cosine(0.996, 1.0)
    for k in (0, 250, 500, 999):
        assert momentum(at(k)) == pytest.approx(1 - (1 - 0.996) * (math.cos(math.pi * k / 1000) + 1) / 2)


def test_linear_over_epochs_then_constant() -> None:
    temperature = linear(0.04, 0.07, epochs=30)
    assert temperature(at(0)) == 0.04
    assert temperature(at(150)) == pytest.approx(0.055)
    assert temperature(at(300)) == temperature(at(900)) == pytest.approx(0.07)


def test_steps_multiply() -> None:
    rate = steps(0.1, at=(0.3, 0.6, 0.8), factor=0.2)
    assert [round(rate(at(k)), 8) for k in (0, 299, 300, 600, 800)] == [0.1, 0.1, 0.02, 0.004, 0.0008]


def test_a_new_peak_scales_the_whole_curve() -> None:
    rate = warmup_cosine(0.3, warmup_epochs=10, end=0.03)
    moved = rate.with_peak(0.6)
    assert moved.peak == 0.6
    assert [moved(at(k)) for k in (0, 70, 400, 999)] == pytest.approx([2 * rate(at(k)) for k in (0, 70, 400, 999)])
    with pytest.raises(ValueError, match="zero everywhere"):
        constant(0.0).with_peak(1.0)


def test_steps_after_a_warm_up_of_updates() -> None:
    rate = steps(0.1, at=(0.5,), factor=0.2, warmup_updates=20)
    assert [rate(at(k)) for k in (0, 9, 19, 499, 500)] == pytest.approx([0.005, 0.05, 0.1, 0.1, 0.02])
    assert str(rate) == "warm-up 20 updates (at most a tenth) to 0.1, x 0.2 at 50%"
    short = steps(0.1, at=(0.5,), factor=0.2, warmup_updates=500)
    assert short(at(99)) == pytest.approx(0.1)
    assert short(at(49)) == pytest.approx(0.05)
