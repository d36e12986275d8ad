"""Monitors: each alarm rings for what it is named after, and not for healthy features."""

import math

import pytest
import torch

from selfsight.engine.monitors import Monitors


def judged(monitors: Monitors, progress: float = 0.5) -> set[str]:
    return {alarm.name for alarm in monitors.judge(monitors.read(), progress)}


def healthy() -> Monitors:
    torch.manual_seed(0)
    monitors = Monitors()
    for _ in range(4):
        z = torch.randn(64, 32)
        monitors.see({
            "feature": torch.randn(128, 64),
            "projection": torch.cat([z, z + 0.1 * torch.randn_like(z)]),
            "teacher": torch.softmax(3 * torch.randn(128, 50), dim=1),
            "assignment": torch.softmax(5 * torch.randn(128, 50), dim=1),
        })  # fmt: skip
    return monitors


def test_healthy_features_raise_no_alarm() -> None:
    monitors = healthy()
    readings = monitors.read()
    assert judged(monitors) == set()
    assert readings["feature_std"] == pytest.approx(1 / math.sqrt(32), rel=0.1)
    assert 40 < readings["effective_rank"] <= 64
    assert readings["alignment"] < 0.1
    assert readings["dead_prototypes"] == 0
    assert 0 < readings["teacher_entropy"] < 1


def test_equal_projections_are_a_collapse() -> None:
    monitors = healthy()
    monitors.see({"projection": torch.ones(128, 32) + 1e-4 * torch.randn(128, 32)})
    assert "feature_collapse" in judged(monitors)
    assert judged(monitors, progress=0.01) == set()


def test_projections_that_batch_norm_keeps_apart_but_that_are_copies_are_a_collapse() -> None:
    monitors = healthy()
    few = torch.randn(128, 2) @ torch.randn(2, 256)
    z = (few - few.mean(0)) / few.std(0)
    monitors.see({"projection": z})
    assert judged(monitors) == {"projection_collapse"}
    assert monitors.read()["feature_std"] > 0.9 / math.sqrt(256)


def test_features_on_a_line_are_a_dimensional_collapse() -> None:
    monitors = Monitors()
    monitors.see({"feature": torch.randn(512, 1) @ torch.randn(1, 64)})
    assert "dimensional_collapse" in judged(monitors)


@pytest.mark.parametrize(("logits", "name"), [(torch.zeros(64, 20), "teacher_uniform"), (None, "teacher_peaked")])
def test_a_teacher_that_says_nothing(logits: torch.Tensor | None, name: str) -> None:
    monitors = Monitors()
    if logits is None:
        logits = torch.zeros(64, 20)
        logits[:, 3] = 100.0
    monitors.see({"teacher": torch.softmax(logits, dim=1)})
    assert name in judged(monitors)


def test_dead_prototypes_are_counted() -> None:
    monitors = Monitors()
    q = torch.zeros(200, 100)
    q[:, :5] = torch.rand(200, 5) + 0.1
    monitors.see({"assignment": q})
    assert monitors.read()["dead_prototypes"] == pytest.approx(0.95)
    assert "dead_prototypes" in judged(monitors)


def test_a_restored_monitor_reads_the_same() -> None:
    monitors, again = healthy(), Monitors()
    again.restore(monitors.state(), lambda x: x)
    again.see({})
    assert again.read()["effective_rank"] == monitors.read()["effective_rank"]
    assert again.read()["dead_prototypes"] == monitors.read()["dead_prototypes"]
