"""Crop, flip and resize against torchvision, on uint8 and exactly in float64."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF  # noqa: N812

from selfsight import keyed
from selfsight.views import geometry
from selfsight.views.view import DRAWS, Boxes, Interpolation, View, boxes

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def draw(view: View, n: int, height: int, width: int, seed: int = 0) -> Boxes:
    key = keyed.Key(seed, torch.zeros(n, dtype=torch.long), torch.arange(n))
    return boxes(view, keyed.uniforms(key, "view0", DRAWS), height, width)


def close(ours: Tensor, theirs: Tensor) -> None:
    """The house's bound for one operation: 2 of 255 on average, 8 at most."""
    gap = (ours.float() - theirs.float()).abs()
    assert gap.mean() <= 2, gap.mean()
    assert gap.max() <= 8, gap.max()


def naive(pixels: Tensor, start: int, length: int, size: int, bicubic: bool) -> list[float]:
    """One row, cropped and resized pixel by pixel."""
    stretch = max(1.0, length / size)
    out: list[float] = []
    for i in range(size):
        centre, total, value = (i + 0.5) * length / size, 0.0, 0.0
        for j in range(length):
            t = abs(j + 0.5 - centre) / stretch
            if bicubic:
                inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
                weight = inner if t < 1 else outer if t < 2 else 0.0
            else:
                weight = max(0.0, 1 - t)
            total, value = total + weight, value + weight * pixels[start + j].item()
        out.append(value / total)
    return out


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 20, 96])
def test_a_drawn_crop_has_torchvisions_pixels(pictures: Tensor, interpolation: Interpolation, size: int) -> None:
    view = View(size=size, interpolation=interpolation)
    n, height, width = max(16, len(pictures)), *pictures.shape[2:]
    if height > 500:
        n = 4
    box = draw(view, n, height, width)
    assert box.flip.any()
    assert not box.flip.all()
    rows = torch.arange(n) % len(pictures)
    ours = geometry.resample(pictures, rows, box, size, interpolation).transpose(0, 1)
    assert ours.shape == (n, 3, size, size)
    for k in range(n):
        corner = [int(value[k]) for value in box[:4]]
        theirs = TF.resized_crop(pictures[rows[k]], *corner, [size, size], MODES[interpolation], antialias=True)
        theirs = TF.hflip(theirs) if box.flip[k] else theirs
        close(ours[k] * 255, theirs)
        # A worker's cut is held to torchvision on Pillow images, which rounds and clamps between the two axes.
        pillow = TF.resized_crop(TF.to_pil_image(pictures[rows[k]]), *corner, [size, size], MODES[interpolation])
        pillow = TF.hflip(pillow) if box.flip[k] else pillow
        one = box.each(lambda field, k=k: field[k : k + 1])
        close(geometry.cut(pictures[rows[k]], one, size, interpolation), TF.pil_to_tensor(pillow))


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("start", "length"), [(0, 13), (3, 5), (12, 1), (2, 9)])
def test_weights_are_the_filter_pixel_by_pixel(start: int, length: int, bicubic: bool) -> None:
    size, row = 7, torch.rand(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    taps = geometry.weights(
        *(torch.tensor([float(value)], dtype=torch.float64) for value in (start, length)),
        13,
        size,
        "bicubic" if bicubic else "bilinear",
        closed=True,
    )
    expected = torch.tensor(naive(row, start, length, size, bicubic), dtype=torch.float64)
    torch.testing.assert_close(row @ taps[0].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_table_of_weights_is_what_is_computed_without_it(
    monkeypatch: pytest.MonkeyPatch, interpolation: Interpolation
) -> None:
    images = torch.randint(0, 256, (40, 2, 11, 14), dtype=torch.uint8)
    box = draw(View(size=8), 40, 11, 14)
    with_table = geometry.resample(images, torch.arange(40), box, 8, interpolation)
    monkeypatch.setattr(geometry, "_TABLE_LIMIT", 0)
    without = geometry.resample(images, torch.arange(40), box, 8, interpolation)
    torch.testing.assert_close(with_table, without, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels(channels: int) -> None:
    images = torch.randint(0, 256, (5, channels, 20, 30), dtype=torch.uint8)
    box = draw(View(size=16), 5, 20, 30)
    ours = geometry.resample(images, torch.arange(5), box, 16, "bilinear").transpose(0, 1)
    for k in range(5):
        one = box.each(lambda field, k=k: field[k : k + 1])
        close(ours[k] * 255, geometry.cut(images[k], one, 16, "bilinear"))


def test_the_padded_crop_is_cifars() -> None:
    images = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8)
    view = View(size=32, scale=None, padding=4)
    box = draw(view, 64, 32, 32)
    ours = geometry.resample(images, torch.arange(64), box, 32, "bilinear").transpose(0, 1)
    places = set()
    for k in range(64):
        padded = torch.zeros(3, 40, 40)
        padded[:, 4:36, 4:36] = images[k]
        top, left = int(box.top[k]) + 4, int(box.left[k]) + 4
        places.add((top, left))
        expected = padded[:, top : top + 32, left : left + 32]
        expected = expected.flip(-1) if box.flip[k] else expected
        torch.testing.assert_close(ours[k] * 255, expected, atol=1e-3, rtol=0)
        one = box.each(lambda field, k=k: field[k : k + 1])
        assert torch.equal(geometry.cut(images[k], one, 32, "bilinear").float(), expected)
    assert {p for place in places for p in place} == set(range(9))


@pytest.mark.parametrize(("height", "width", "size", "short"), [(60, 45, 32, 37), (45, 60, 32, 32), (33, 90, 20, 40)])
def test_the_centre_is_torchvisions_resize_and_centre_crop(height: int, width: int, size: int, short: int) -> None:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    theirs = TF.center_crop(TF.resize(image, [short], antialias=True), [size, size])
    close(geometry.centre(image[None], size, short, "bilinear")[0], theirs)
    close(geometry.centre(image[None].float(), size, short, "bilinear")[0], theirs)


def test_a_constant_image_stays_constant() -> None:
    images = torch.full((8, 3, 50, 40), 200, dtype=torch.uint8)
    box = draw(View(size=24, interpolation="bicubic"), 8, 50, 40)
    x = geometry.resample(images, torch.arange(8), box, 24, "bicubic")
    assert math.isclose(x.min().item(), 200 / 255, abs_tol=1e-6)
    assert math.isclose(x.max().item(), 200 / 255, abs_tol=1e-6)
