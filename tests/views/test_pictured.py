"""BEiT's view: the same crop twice, in two sizes, and its mask."""

from dataclasses import replace

import pytest
import torch

from selfsight.keyed import Key
from selfsight.views.pictured import masked_pictures
from selfsight.views.seeded import seeded_view
from selfsight.views.view import Jitter, View

VIEW = View(size=32, jitter=Jitter(0.4, 0.4, 0.4, 0.0), normalise=None)
KEY = Key(0, torch.zeros(6, dtype=torch.long), torch.arange(6))


def images() -> torch.Tensor:
    """Smooth ones, so that two sizes of one crop can be compared."""
    torch.manual_seed(0)
    coarse = torch.rand(6, 3, 5, 5)
    return (255 * torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)).to(torch.uint8)


def test_both_show_the_same_crop() -> None:
    views = masked_pictures(VIEW, replace(VIEW, size=16), patch=4, budget=26, smallest=4)
    batch = views.render(images(), views.plan(KEY), KEY)
    assert (batch.x.shape, batch.picture.shape) == ((6, 3, 32, 32), (6, 3, 16, 16))
    smaller = torch.nn.functional.interpolate(batch.x, (16, 16), mode="area")
    assert float((smaller - batch.picture).abs().max()) < 0.06
    assert float((smaller - smaller.flip(0)).abs().mean()) > 0.05, "the images differ, so the comparison says something"


def test_cut_images_give_the_same() -> None:
    views = masked_pictures(VIEW, replace(VIEW, size=16), patch=4, budget=26, smallest=4)
    plan, whole = views.plan(KEY), images()
    rendered, cut = views.render(whole, plan, KEY), views.render(views.cut(list(whole), plan), plan, KEY)
    assert float((rendered.picture - cut.picture).abs().max()) < 0.03
    assert torch.equal(rendered.masked, cut.masked)


def test_masks_depend_on_the_key() -> None:
    views = masked_pictures(VIEW, VIEW, patch=4, budget=26, smallest=4)
    masks = [views.render(images(), views.plan(key), key).masked for key in (KEY, KEY._replace(epoch=KEY.epoch + 1))]
    assert masks[0].shape == (6, 64)
    assert not torch.equal(*masks)
    assert int(masks[0].sum(dim=1).max()) <= 26


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="patch 5 does not divide"):
        masked_pictures(VIEW, VIEW, patch=5, budget=26)
    with pytest.raises(ValueError, match="same crop"):
        masked_pictures(VIEW, replace(VIEW, scale=(0.5, 1.0)), patch=4, budget=26)
    with pytest.raises(ValueError, match="64 of 64 patches"):
        masked_pictures(VIEW, VIEW, patch=4, budget=64)


def test_seeds_depend_on_the_key() -> None:
    views = seeded_view(VIEW)
    seeds = [views.render(images(), views.plan(key), key).seed for key in (KEY, KEY._replace(seed=1))]
    assert len({tuple(seed) for seed in seeds[0].tolist()}) == 6
    assert not torch.equal(*seeds)
    assert 0 <= int(seeds[0].min()) <= int(seeds[0].max()) < 2**24
