"""Which way an image is turned: by key alone, each way as often as the others; the picture itself is not."""

import jaxtyping
import pytest
import torch

from selfsight.keyed import Key
from selfsight.report.grid import tiles
from selfsight.views.pipelines import one_view
from selfsight.views.turned import turned_view
from selfsight.views.view import View

CIFAR = View(size=32, scale=None, padding=4)
IMAGES = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def key(n: int, *, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


def test_four_copies_are_the_same_view_in_all_turns() -> None:
    views, upright = turned_view(CIFAR), one_view(CIFAR)
    batch = views.render(IMAGES[:8], views.plan(key(8)), key(8))
    assert batch.turns.tolist() == [[0, 1, 2, 3]] * 8
    assert torch.equal(batch.x, upright.render(IMAGES[:8], upright.plan(key(8)), key(8)).x)
    shown = tiles(views, batch)
    assert len(shown) == 4
    assert torch.equal(shown[1], torch.rot90(shown[0], 1, (2, 3)))


def test_one_copy_is_turned_each_way_as_often_and_by_key_alone() -> None:
    views = turned_view(CIFAR, copies=1)
    batch = views.render(IMAGES, views.plan(key(400)), key(400))
    assert batch.turns.shape == (400, 1)
    counts = torch.bincount(batch.turns[:, 0], minlength=4)
    assert counts.shape == (4,)
    assert (counts - 100).abs().max() < 4 * 75**0.5
    rows = torch.tensor([17, 3, 22])
    part = Key(0, torch.zeros(3, dtype=torch.long), rows)
    assert torch.equal(views.render(IMAGES[rows], views.plan(part), part).turns, batch.turns[rows])
    for other in (key(400, epoch=1), key(400, seed=1)):
        assert not torch.equal(views.render(IMAGES, views.plan(other), other).turns, batch.turns)
    upright, shown = tiles(views, batch)
    assert torch.equal(shown[5], torch.rot90(upright[5], int(batch.turns[5, 0]), (1, 2)))
    cut = views.render(views.cut(list(IMAGES), views.plan(key(400))), views.plan(key(400)), key(400))
    assert torch.equal(cut.turns, batch.turns)


def test_it_says_how_and_refuses_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert turned_view(CIFAR).describe().endswith("; turned in all four quarter turns")
    assert turned_view(CIFAR, copies=1).describe().endswith("; turned by one of four quarter turns")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # nobody checks types outside the tests
    with pytest.raises(ValueError, match="--copies is 2; an image is turned in all 4 ways or in 1 of them"):
        turned_view(CIFAR, copies=2)  # pyright: ignore[reportArgumentType]
