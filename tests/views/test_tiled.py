"""Tiles and wholes: one middle square, Pillow's four kernels, and what the two images of a pair share."""

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.batches import TiledImages
from selfsight.keyed import Key
from selfsight.report.grid import tiles as pictures_of
from selfsight.views.tiled import KERNELS, Kernel, halve, paired, tiled
from selfsight.views.view import IMAGENET, View

WHOLE = View(size=32, scale=(1, 1), ratio=(1, 1), flip=0, normalise=None)


def key(n: int, *, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


def pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def made(images: torch.Tensor, view: View = WHOLE, *, epoch: int = 0, **options: object) -> TiledImages:
    views, k = tiled(view, **options), key(len(images), epoch=epoch)
    return views.render(images, views.plan(k), k)


def test_tiles_are_the_quarters_of_what_the_whole_shows() -> None:
    """Sheet 5, check b: by the area kernel a whole's sum of pixels is a quarter of its tiles'."""
    images = pictures(4)
    batch = made(images, grey=0.0, kernels=("area",))
    x = images / 255
    for j, (row, column) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        torch.testing.assert_close(batch.tiles[:, j], x[:, :, row : row + 16, column : column + 16])
    torch.testing.assert_close(batch.whole, torch.nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(batch.whole.sum((1, 2, 3)), batch.tiles.sum((1, 2, 3, 4)) / 4)


@pytest.mark.parametrize(("kernel", "pillow"), [*zip(KERNELS, ("BOX", "BILINEAR", "BICUBIC", "LANCZOS"), strict=True)])
def test_kernels_are_pillows(kernel: Kernel, pillow: str) -> None:
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    found = halve(x, torch.zeros(2, dtype=torch.long), (kernel,))
    for image, half in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        theirs = Image.fromarray(image.numpy()).resize((12, 12), Image.Resampling[pillow])
        np.testing.assert_allclose(half.numpy(), np.asarray(theirs).clip(0, 1), atol=1e-5)


def test_kernels_go_to_the_rows_that_drew_them() -> None:
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([3, 0, 1, 1, 2, 0, 3, 2])
    together = halve(x, which)
    for row, k in enumerate(which):
        alone = halve(x[row : row + 1], torch.zeros(1, dtype=torch.long), (KERNELS[k],))
        torch.testing.assert_close(together[row : row + 1], alone)
    assert len({tuple(image.flatten().tolist()) for image in halve(x[:1].expand(4, -1, -1, -1), torch.arange(4))}) == 4


@pytest.mark.parametrize(("height", "width"), [(40, 72), (72, 40), (200, 301)])
@pytest.mark.parametrize("cut", [False, True])
def test_all_comes_from_the_middle_square(height: int, width: int, cut: bool) -> None:
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = torch.full((4, 3, height, width), 255, dtype=torch.uint8)
    images[:, :, top : top + side, left : left + side] = 100
    views, k = tiled(View(size=32, scale=(0.7, 1.0), ratio=(1, 1), normalise=None), grey=0.0), key(4)
    plan = views.plan(k)
    batch = views.render(views.cut(list(images), plan) if cut else images, plan, k)
    for part in (batch.whole, batch.tiles):
        torch.testing.assert_close(part, torch.full_like(part, 100 / 255), atol=1e-4, rtol=0)
    assert batch.whole.shape[-2:] == batch.tiles.shape[-2:] == (16, 16)


def test_large_images_come_as_cuts() -> None:
    views, k = tiled(View(size=32, scale=(0.7656, 0.7656), ratio=(1, 1))), key(4)
    images, plan = pictures(4, 150, 210), views.plan(k)
    whole, cut = views.render(images, plan, k), views.render(views.cut(list(images), plan), plan, k)
    assert (whole.whole - cut.whole).abs().max() < 0.02
    assert (whole.tiles - cut.tiles).abs().max() < 0.02


def test_both_images_of_a_pair_are_grey_or_neither() -> None:
    n = 600
    batch = made(pictures(n), grey=0.67)
    wholes, tiles = (
        (x[..., 0, :, :] - x[..., 2, :, :]).abs().amax((-2, -1)) < 1e-6 for x in (batch.whole, batch.tiles)
    )
    assert torch.equal(tiles, wholes[:, None].expand(-1, 4))
    assert torch.equal(wholes[::2], wholes[1::2])
    assert abs(wholes.float().mean().item() - 0.67) < 4 * (0.67 * 0.33 / (n / 2)) ** 0.5
    later = made(pictures(n), grey=0.67, epoch=1).whole
    assert not torch.equal((later[:, 0] - later[:, 2]).abs().amax((1, 2)) < 1e-6, wholes)


def test_both_images_of_a_pair_are_downsampled_alike() -> None:
    n = 400
    images = pictures(1).expand(n, -1, -1, -1)
    drawn = made(images, grey=0.0).whole
    each = [made(images[:2], grey=0.0, kernels=(kernel,)).whole[0] for kernel in KERNELS]
    which = torch.stack([(drawn - one).abs().amax((1, 2, 3)) for one in each]).argmin(dim=0)
    assert torch.equal(which[::2], which[1::2])
    share = which.bincount(minlength=4) / n
    assert (share - 0.25).abs().max() < 4 * (0.25 * 0.75 / (n / 2)) ** 0.5


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_every_row_has_another_image(count: int) -> None:
    first, further = paired(count)
    other = torch.arange(count) + further
    assert ((other >= 0) & (other < count) & (other != torch.arange(count))).all()
    assert torch.equal(first[other], first)
    assert torch.equal(made(pictures(count)).other, further)


def test_crops_depend_on_seed_epoch_and_index_alone() -> None:
    view = View(size=32, scale=(0.5, 0.5), ratio=(1, 1))
    images = pictures(6, 48, 48)
    views = tiled(view, grey=0.0, kernels=("area",))
    whole = views.render(images, views.plan(key(6)), key(6))
    rows = torch.tensor([4, 1])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    torch.testing.assert_close(some.tiles, whole.tiles[rows])
    assert torch.equal(some.index, rows)


def test_the_evaluation_view_is_in_colour_and_normalised() -> None:
    plain = tiled(View(size=32, scale=(0.7, 0.7), ratio=(1, 1), normalise=IMAGENET), grey=1.0).plain
    images = pictures(2)
    x = plain.render(images, {}, key(2)).x
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in IMAGENET)
    torch.testing.assert_close(x, (images / 255 - mean) / std)


def test_the_picture_shows_tiles_whole_and_other_image() -> None:
    views, k = tiled(View(size=32, scale=(1, 1), ratio=(1, 1), flip=0), grey=0.0, kernels=("area",)), key(4)
    images = pictures(4)
    grid, whole, other = pictures_of(views, views.render(images, views.plan(k), k))
    assert grid.shape == (4, 3, 34, 34)  # a gap after each tile
    assert (grid[:, :, :16, 17:33].int() - images[:, :, :16, 16:].int()).abs().max() <= 1
    assert torch.equal(other, whole[[1, 0, 3, 2]])


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="31 px has no four equal tiles; take 32 px"):
        tiled(View(size=31))
    with pytest.raises(ValueError, match=r"--grey is 1\.5; it is a share"):
        tiled(WHOLE, grey=1.5)
    with pytest.raises(ValueError, match="leaves grey to the pairs"):
        tiled(View(size=32, grey=0.2))
    assert "a pair is grey 0.67" in tiled(WHOLE).describe()
