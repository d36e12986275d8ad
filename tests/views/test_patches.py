"""Grids of patches: cut where they should be, each changed by numbers of its own, padded back, and evaluated whole."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfsight.batches import Patches
from selfsight.keyed import Key
from selfsight.views.patches import patch_grid
from selfsight.views.view import IMAGENET, Jitter, View

PLAIN = View(size=8, scale=None, flip=0, normalise=None)
WHOLE = View(size=32, scale=None, flip=0, normalise=None)


def key(n: int, *, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


def pictures(n: int, size: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def made(each: View, images: Tensor, crop: View = WHOLE, **options: float) -> Patches:
    views = patch_grid(crop, each, stride=int(options.pop("stride", 4)), **options)
    k = key(len(images))
    return views.render(images, views.plan(k), k)


def test_patches_overlap_and_lie_in_row_major_order() -> None:
    images = pictures(3)
    x = made(PLAIN, images).x
    assert x.shape == (3, 7, 7, 3, 8, 8)
    for r in range(7):
        for c in range(7):
            torch.testing.assert_close(x[:, r, c], images[:, :, 4 * r : 4 * r + 8, 4 * c : 4 * c + 8] / 255)


def test_a_sub_crop_is_drawn_for_each_patch_and_padded_back() -> None:
    images = pictures(8)
    x = made(replace(PLAIN, padding=1), images).x
    border = torch.ones(8, 8, dtype=torch.bool)
    border[1:7, 1:7] = False
    assert not x[..., border].any()
    seen = []
    for b in range(8):
        for r in range(7):
            for c in range(7):
                top, left = 4 * r, 4 * c
                shifts = [
                    (down, right)
                    for down in range(3)
                    for right in range(3)
                    if torch.allclose(
                        x[b, r, c, :, 1:7, 1:7],
                        images[b, :, top + down : top + down + 6, left + right : left + right + 6] / 255,
                    )
                ]
                assert len(shifts) == 1
                seen += shifts
    counts = torch.tensor([seen.count((d, r)) for d in range(3) for r in range(3)])
    assert counts.min() > 392 / 9 - 4 * (392 / 9) ** 0.5
    assert len({tuple(seen[49 * b : 49 * b + 49]) for b in range(8)}) == 8


def test_patches_flip_one_by_one() -> None:
    images = pictures(4)
    x = made(View(size=8, scale=None, flip=0.5, normalise=None), images).x.flatten(0, 2)
    straight = made(PLAIN, images).x.flatten(0, 2)
    same = (x - straight).abs().amax(dim=(1, 2, 3)) < 1e-6
    turned = (x - straight.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert (same ^ turned).all()
    assert 0.35 < turned.float().mean() < 0.65
    per_image = turned.view(4, 49).float().mean(dim=1)
    assert ((per_image > 0) & (per_image < 1)).all()


def test_colours_are_drawn_for_each_patch() -> None:
    images = pictures(2)[:, :, :1, :1].expand(-1, -1, 32, 32).contiguous()  # one colour an image
    x = made(View(size=8, scale=None, jitter=Jitter(0.4, 0.4, 0.4, 0.1), normalise=None), images).x
    colours = x[..., 0, 0].flatten(1, 2)
    assert all(len({tuple(c) for c in image.tolist()}) > 40 for image in colours)


def test_two_colours_are_dropped_after_normalisation() -> None:
    images = pictures(8)
    each = View(size=8, scale=None, flip=0, normalise=IMAGENET)
    whole, all_dropped, some = (made(each, images, drop=p).x.flatten(0, 2) for p in (0.0, 1.0, 0.25))
    kept = all_dropped.abs().amax(dim=(2, 3)) > 0
    assert (kept.sum(dim=1) == 1).all()
    assert torch.equal(all_dropped[kept], whole[kept])
    assert (kept.float().mean(dim=0) - 1 / 3).abs().max() < 0.1
    dropped = (some != whole).any(dim=(1, 2, 3)).float().mean()
    assert 0.15 < dropped < 0.35
    grey = made(each, pictures(2, channels=1), drop=1.0).x
    assert torch.equal(grey, made(each, pictures(2, channels=1)).x)


def test_primitives_change_patches_one_by_one() -> None:
    images = pictures(4)
    plain, one, two = (made(PLAIN, images, primitives=n).x.flatten(0, 2) for n in (0, 1, 2))
    changed = (one != plain).any(dim=(1, 2, 3))
    assert 0.8 < changed.float().mean() < 1  # on patches of 8 px, equalising does nothing
    assert (two != one).any(dim=(1, 2, 3)).float().mean() > 0.7
    assert len({tuple(patch.flatten().tolist()) for patch in one}) > 190
    views = patch_grid(WHOLE, PLAIN, stride=4, primitives=2)
    assert "2 of AutoAugment's primitives" in views.describe()


def test_patches_depend_on_seed_epoch_and_index_alone() -> None:
    views = patch_grid(
        View(size=32), View(size=8, scale=None, padding=1, jitter=Jitter(0.4, 0.4, 0.4, 0.1)), stride=4, primitives=2
    )
    images = pictures(6, 40)
    whole = views.render(images, views.plan(key(6)), key(6))
    rows = torch.tensor([4, 1])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    torch.testing.assert_close(some.x, whole.x[rows])
    assert torch.equal(some.index, rows)
    later = views.render(images, views.plan(key(6, epoch=1)), key(6, epoch=1))
    assert not torch.allclose(later.x, whole.x)


def test_large_images_come_as_cuts() -> None:
    views = patch_grid(View(size=32, scale=(0.728, 0.728), ratio=(1, 1)), PLAIN, stride=4)
    images = pictures(4, 200)
    plan = views.plan(key(4))
    whole, cut = views.render(images, plan, key(4)), views.render(views.cut(list(images), plan), plan, key(4))
    assert cut.x.shape == whole.x.shape
    assert (cut.x - whole.x).abs().max() < 3 / 255


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_the_evaluation_view_is_whole_and_as_grey_as_training(grey: float) -> None:
    each = View(size=8, scale=None, normalise=IMAGENET)
    plain = patch_grid(View(size=32, grey=grey), each, stride=4).plain
    x = plain.render(pictures(2), {}, key(2)).x
    assert x.shape == (2, 3, 32, 32)
    back = x * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]
    spread = (back.amax(dim=1) - back.amin(dim=1)).max()
    assert (spread < 1e-5) == bool(grey)
    assert ("grey" in plain.describe()) == bool(grey)
    cut = plain.render(plain.cut(list(pictures(2)), {}), {}, key(2)).x
    torch.testing.assert_close(cut, x)


def test_it_says_what_it_does() -> None:
    each = View(size=8, scale=None, padding=1, flip=0.5, jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), normalise=None)
    words = patch_grid(View(size=32, scale=None), each, stride=4, drop=0.25).describe()
    assert words == (
        "view 1: whole image at 32 px (bilinear), flip 0.5; 7 x 7 patches of 8 px, 4 px apart, "
        "a sub-crop of 6 px of each, flip 0.5, jitter (0.4, 0.4, 0.4, 0.1) 0.8, two colours dropped 0.25"
    )


def test_calls_that_cannot_be_meant() -> None:
    for size, stride in ((40, 4), (8, 0), (8, 25)):
        with pytest.raises(ValueError, match=f"patches of {size} px, {stride} px apart, do not fit twice"):
            patch_grid(WHOLE, replace(PLAIN, size=size), stride=stride)
    with pytest.raises(ValueError, match="scale=None"):
        patch_grid(WHOLE, View(size=8), stride=4)
