"""Which quarter is seen: by key alone, each as often as the others."""

import pytest
import torch
from torch import Tensor

from selfsight.keyed import Key
from selfsight.views.quarters import quarter_view
from selfsight.views.view import View

WHOLE = View(size=32, scale=None, flip=0, normalise=None)


def key(n: int, *, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


def pictures(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_quarters_are_drawn_alike_and_the_view_is_whole() -> None:
    views, images = quarter_view(WHOLE), pictures(400)
    batch = views.render(images, views.plan(key(400)), key(400))
    torch.testing.assert_close(batch.x, images / 255)
    counts = torch.bincount(batch.quarter, minlength=4)
    assert counts.shape == (4,)
    assert (counts - 100).abs().max() < 4 * 75**0.5


def test_a_quarter_depends_on_seed_epoch_and_index_alone() -> None:
    views, images = quarter_view(WHOLE), pictures(40)
    whole = views.render(images, views.plan(key(40)), key(40))
    rows = torch.tensor([17, 3, 22])
    part = Key(0, torch.zeros(3, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    assert torch.equal(some.quarter, whole.quarter[rows])
    assert torch.equal(some.index, rows)
    cut = views.render(views.cut(list(images), views.plan(key(40))), views.plan(key(40)), key(40))
    assert torch.equal(cut.quarter, whole.quarter)
    for other in (key(40, epoch=1), key(40, seed=1)):
        assert not torch.equal(views.render(images, views.plan(other), other).quarter, whole.quarter)


def test_it_says_what_is_seen_and_refuses_odd_sizes() -> None:
    assert quarter_view(WHOLE).describe().endswith("; a quarter of 16 px is seen, one of four")
    with pytest.raises(ValueError, match="take an even size"):
        quarter_view(View(size=31))
