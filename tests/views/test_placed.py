"""AMDIM's pair: one flip for both views, mirrored translations, places drawn by key."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from selfsight.keyed import Key
from selfsight.views.placed import placed_views, translate
from selfsight.views.view import Jitter, View


def key(n: int, *, epoch: int = 0) -> Key:
    return Key(0, torch.full((n,), epoch), torch.arange(n))


def pictures(n: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_both_views_are_flipped_or_neither() -> None:
    views = placed_views(View(size=32, scale=None, normalise=None))
    images = pictures(64)
    batch = views.render(images, views.plan(key(64)), key(64))
    assert torch.equal(batch.x1, batch.x2)  # nothing but the flip is drawn
    flipped = (batch.x1 - images.flip(-1) / 255).abs().amax(dim=(1, 2, 3)) < 1e-6
    straight = (batch.x1 - images / 255).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert (flipped ^ straight).all()
    assert 16 < flipped.sum() < 48


def test_crops_and_colours_are_drawn_for_each_view() -> None:
    for view in (View(size=32, scale=(0.3, 1.0)), View(size=32, scale=None, jitter=Jitter(0.4, 0.4, 0.4, 0.2))):
        views = placed_views(view)
        batch = views.render(pictures(8, 40), views.plan(key(8)), key(8))
        assert (batch.x1 != batch.x2).any(dim=(1, 2, 3)).all()


def test_translations_mirror_the_border() -> None:
    x = pictures(1)[:, :1].double()
    for down in (-4, 0, 3):
        for right in (-1, 0, 4):
            wide = F.pad(x, (4, 4, 4, 4), mode="reflect")
            expected = wide[:, :, 4 - down : 36 - down, 4 - right : 36 - right]
            assert torch.equal(translate(x, torch.tensor([[down, right]])), expected)


def test_four_fifths_of_the_views_are_translated() -> None:
    views = placed_views(View(size=32, scale=None, flip=0, normalise=None), shift=4)
    images = pictures(1).expand(400, -1, -1, -1)
    batch = views.render(images, views.plan(key(400)), key(400))
    moved = torch.stack([(x - images / 255).abs().flatten(1).amax(dim=1) > 1e-5 for x in (batch.x1, batch.x2)])
    expected = 0.8 * (1 - 1 / 81)  # a translation by nothing among them
    assert (moved.float().mean(dim=1) - expected).abs().max() < 0.08
    assert (moved[0] != moved[1]).any()
    assert "translated by up to 4 px 0.8" in views.describe()


def test_places_are_uniform_and_drawn_by_key() -> None:
    views = placed_views(View(size=32))
    place = views.plan(key(2000))["place"]
    assert torch.equal(views.plan(key(5))["place"], place[:5])
    assert not torch.equal(views.plan(key(5, epoch=1))["place"], place[:5])
    counts = (place * 25).long().flatten().bincount(minlength=25)
    assert len(counts) == 25
    assert (counts - 160).abs().max() < 5 * 160**0.5
    assert (place[:, 0] - place[:, 1]).abs().mean() > 0.3


def test_a_shift_larger_than_the_view_is_refused() -> None:
    with pytest.raises(ValueError, match="translated by 0 to 31 px, not 32"):
        placed_views(View(size=32), shift=32)
