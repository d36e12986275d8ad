"""Exemplar patches: where seeds lie, what is cut of the image, and that nothing but content tells classes apart."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from selfsight.keyed import Key
from selfsight.views import geometry
from selfsight.views.exemplars import ExemplarPatches, exemplars
from selfsight.views.seeds import Seeds, Squares, corners, energy, moved, seeds, turning, upright

STILL: dict[str, Any] = {"translation": 0.0, "scale": (1.0, 1.0), "degrees": 0.0}


def synthetic(n: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth colours, uint8."""
    coarse = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(height))
    return (255 * F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)).round().to(torch.uint8)


def key(n: int, epoch: int = 0) -> Key:
    return Key(0, torch.full((n,), epoch), torch.arange(n))


def draws(views: ExemplarPatches, images: Tensor, count: int) -> Tensor:
    """``count`` patches of each image, of as many epochs: ``n count c s s``."""
    n = len(images)
    keys = Key(0, torch.arange(count).repeat(n), torch.arange(n).repeat_interleave(count))
    whole = images.repeat_interleave(count, dim=0)
    return views.render(whole, views.plan(keys), keys).x.unflatten(0, (n, count))


def told_apart(described: Tensor) -> float:
    """The share of later draws whose nearest earlier draw (``n count d``) is of their own class."""
    n, count, _ = described.shape
    half = count // 2
    early, late = described[:, :half].flatten(0, 1), described[:, half:].flatten(0, 1)
    nearest = torch.cdist(late, early).argmin(dim=1) // half
    return float((nearest == torch.arange(n).repeat_interleave(count - half)).float().mean())


def test_seeds_lie_in_proportion_to_squared_gradients() -> None:
    image = synthetic(1, 14, 17)
    grey = image[0].sum(0, dtype=torch.float64).numpy()
    down = np.diff(np.pad(grey, ((1, 1), (0, 0)), mode="edge"), axis=0)
    across = np.diff(np.pad(grey, ((0, 0), (1, 1)), mode="edge"), axis=1)
    gradient = (down[1:] + down[:-1]) ** 2 + (across[:, 1:] + across[:, :-1]) ** 2
    np.testing.assert_array_equal(energy(image)[0].numpy(), gradient)
    expected = np.array([[gradient[y : y + 6, x : x + 6].sum() for x in range(12)] for y in range(9)])
    expected /= expected.sum()
    n = 4000
    u = torch.stack([torch.zeros(n), (torch.arange(n) + 0.5) / n], dim=1)
    found = seeds(image.expand(n, -1, -1, -1), u, (6 / 14, 6 / 14))
    assert set(found.side.tolist()) == {6}
    counts = np.zeros((9, 12))
    np.add.at(counts, (found.top.numpy(), found.left.numpy()), 1 / n)
    np.testing.assert_allclose(counts, expected, atol=2 / n)


def test_seeds_of_large_and_of_flat_images_lie_within() -> None:
    for image in (synthetic(1, 301, 517), torch.zeros(1, 3, 40, 30, dtype=torch.uint8)):
        u = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
        found = seeds(image.expand(200, -1, -1, -1), u, (0.2, 1.0))
        assert int(torch.minimum(found.top, found.left).min()) >= 0
        assert bool((found.top + found.side <= image.shape[2]).all())
        assert bool((found.left + found.side <= image.shape[3]).all())
        assert found.side.unique().numel() > 20
        assert found.top.unique().numel() > 4


def test_an_image_has_one_seed_for_ever_and_new_transforms_each_epoch() -> None:
    views = exemplars(32)
    first, again, later = (views.plan(key(6, epoch)) for epoch in (0, 0, 7))
    assert torch.equal(first["seed"], later["seed"])
    assert not torch.equal(first["move"], later["move"])
    assert not torch.equal(first["colours"], later["colours"])
    images = synthetic(6, 40, 40)
    a, b = (views.render(images, plan, key(6)) for plan in (first, again))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.index, torch.arange(6))
    assert first["seed"].unique(dim=0).shape == (6, 2)


def test_without_transforms_the_patch_is_its_seed() -> None:
    images = synthetic(8, 48, 48)
    views = exemplars(24, colours=False, **STILL)
    plan = views.plan(key(8))
    found = views.render(images, plan, key(8))
    seed = seeds(images, plan["seed"], views.sides)
    for i, (top, left, side) in enumerate(zip(*(part.tolist() for part in seed), strict=True)):
        cut = images[i : i + 1, :, top : top + side, left : left + side].float() / 255
        expected = F.interpolate(cut, (24, 24), mode="bilinear", antialias=True)
        torch.testing.assert_close(found.x[i : i + 1], expected, atol=1e-4, rtol=0)
        box = torch.tensor([left, top, left + side, top + side]) / 48
        torch.testing.assert_close(found.corners[i, [0, 2]].flatten(), box.float())


def test_pixels_come_from_where_the_square_lies() -> None:
    """An image whose channels are its coordinates says where each pixel was seen."""
    n, s = 30, 20
    rows = torch.arange(100.0)[:, None].expand(100, 120)
    columns = torch.arange(120.0).expand(100, 120)
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    views = exemplars(s, colours=False)
    plan = views.plan(key(n))
    images = image.expand(n, -1, -1, -1)
    found = views.render(images, plan, key(n))
    square = views.squares(images, plan)
    for i in range(n):
        y, x, side, angle = (float(part[i]) for part in square)
        for row, column in ((0, 0), (s // 2, s // 2), (3, s - 2), (s - 1, 0)):
            across, down = ((at + 0.5) / s - 0.5 for at in (column, row))
            at_y = y + side * (math.sin(angle) * across + math.cos(angle) * down)
            at_x = x + side * (math.cos(angle) * across - math.sin(angle) * down)
            seen = 255 * found.x[i, :2, row, column]
            assert seen.tolist() == pytest.approx([at_y - 0.5, at_x - 0.5], abs=1.0)
    half, turn = square.side / 2, square.angle
    across = square.x - half * turn.cos() + half * turn.sin()
    down = square.y - half * turn.sin() - half * turn.cos()
    corner = found.corners[:, 0] * torch.tensor([120.0, 100.0])
    torch.testing.assert_close(corner, torch.stack([across, down], dim=1).float(), atol=1e-3, rtol=0)


def test_transforms_are_the_papers_where_there_is_room() -> None:
    n = 4000
    u = torch.rand(n, 4, generator=torch.Generator().manual_seed(0))
    middle = Seeds(*(torch.full((n,), value) for value in (450, 450, 100)))
    square = moved(middle, u, (1000, 1000), translation=0.2, scale=(0.7, 1.4), degrees=20)
    for part, low, high in ((square.y, 480, 520), (square.x, 480, 520), (square.angle, -math.pi / 9, math.pi / 9)):
        assert float(part.min()) == pytest.approx(low, abs=0.01 * (high - low))
        assert float(part.max()) == pytest.approx(high, abs=0.01 * (high - low))
        assert float(part.mean()) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert (float(square.side.min()), float(square.side.max())) == pytest.approx((70, 140), abs=0.1)
    assert float(square.side.log().mean()) == pytest.approx(math.log(100 * 0.98**0.5), abs=0.02)


def test_cut_images_give_the_same_patches() -> None:
    images, views = synthetic(6, 64, 64), exemplars(24)
    plan = views.plan(key(6))
    whole = views.render(images, plan, key(6))
    cut = views.render(views.cut(list(images), plan), plan, key(6))
    assert float((whole.x - cut.x).abs().mean()) < 2 / 255
    assert torch.equal(whole.corners, cut.corners)
    assert torch.equal(whole.index, cut.index)


def test_nothing_is_ever_padded() -> None:
    """Seeds up to the whole image, at the strongest transforms: the control pads, and its borders show."""
    white = torch.full((200, 3, 40, 52), 255, dtype=torch.uint8)
    views = exemplars(16, sides=(0.6, 1.0), colours=False)
    plan = dict(views.plan(key(200)))
    plan["move"] = (plan["move"] > 0.5).float() * 0.999  # the ends of all ranges
    found = views.render(white, plan, key(200))
    assert float(found.x.min()) > 0.999
    assert float(found.corners.min()) >= 0
    assert float(found.corners.max()) <= 1

    square = views.squares(white, plan)
    patch = torch.ones(200, 3, 16, 16)
    box = square._replace(angle=torch.zeros_like(square.angle))
    turned = F.affine_grid(turning(square, upright(box, (40, 52))), [200, 3, 16, 16], align_corners=False)
    padded = F.grid_sample(patch, turned, align_corners=False)
    assert float((padded.amin((1, 2, 3)) < 0.9).float().mean()) > 0.9


def test_mean_colour_does_not_identify_a_class() -> None:
    """An encoder that sees nothing but a patch's mean colour: certain without the colours' transforms, else lost.

    What it has left are some five hues, since they turn by a tenth of the circle either way: chance is 1 of 40.
    """
    colours = torch.rand(40, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = (255 * colours).to(torch.uint8).expand(-1, -1, 24, 24).contiguous()

    def of(colours: bool) -> float:
        return told_apart(draws(exemplars(8, colours=colours), images, 12).mean((3, 4)))

    assert of(False) > 0.99
    assert of(True) < 0.2


def phase(period: int) -> Tensor:
    """One picture for all classes: nothing but a grid, as the blocks of a JPEG have."""
    at = torch.arange(96) % period == 0
    grid = (at[:, None] | at).to(torch.uint8) * 200
    return grid.expand(40, 3, 96, 96).contiguous()


def test_a_grid_of_blocks_does_not_identify_a_class() -> None:
    """Equal images but for where their seeds lie in the grid: without transforms its phase is the class."""
    still, free = exemplars(16, colours=False, **STILL), exemplars(16, colours=False)
    describe: dict[str, Callable[[Tensor], Tensor]] = {
        "pixels": lambda x: x[:, :, 0].flatten(2),
        "spectrum": lambda x: torch.fft.rfft2(x[:, :, 0]).abs().flatten(2),
    }
    for described in describe.values():
        assert told_apart(described(draws(still, phase(8), 4))) > 0.8
        assert told_apart(described(draws(free, phase(8), 12))) < 0.12


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_than_three(channels: int) -> None:
    images, views = synthetic(4, 40, 40, channels), exemplars(16)
    found = views.render(images, views.plan(key(4)), key(4))
    assert found.x.shape == (4, channels, 16, 16)
    assert bool(found.x.isfinite().all())


def test_the_plain_view_shows_the_whole_image_at_the_networks_size() -> None:
    assert (exemplars(32).plain.size, exemplars(32).plain.grey) == (32, False)


@pytest.mark.parametrize(
    "wrong", [{"sides": (0.0, 0.5)}, {"sides": (0.6, 0.5)}, {"degrees": 60.0}, {"scale": (2.0, 1.0)}]
)
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"seed's side|no such transform"):
        exemplars(32, **wrong)


def test_a_square_lies_in_its_box() -> None:
    square = Squares(*(torch.tensor([v], dtype=torch.float64) for v in (10.0, 12.0, 8.0, 0.3)))
    box = upright(square, (20, 30))
    found = corners(square, (20, 30))[0] * torch.tensor([30.0, 20.0])
    assert float(box.left[0]) <= float(found[:, 0].min()) <= float(box.left[0]) + 1
    assert float(box.top[0]) <= float(found[:, 1].min()) <= float(box.top[0]) + 1
    assert geometry.weights(box.top, box.height, 20, 8, "bilinear", closed=True).shape == (1, 20, 8)
