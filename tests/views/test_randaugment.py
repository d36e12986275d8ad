"""RandAugment: each operation against a slow counterpart of the official code's, and the draw of operations."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from selfsight.keyed import Key
from selfsight.views.pipelines import one_view
from selfsight.views.randaugment import OPERATIONS, cut_out, noisy_view, operation, small_operations
from selfsight.views.view import View

IMAGES = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SMOOTH = torch.nn.functional.interpolate(IMAGES[:, :, :6, :6].float(), size=(48, 48), mode="bilinear").round().byte()


def applied(name: str, strength: float, sign: float = 1.0, images: Tensor = SMOOTH) -> np.ndarray:
    x = images.transpose(0, 1).float() / 255
    change = small_operations()[name]
    out = change(x.clone(), torch.full((len(images),), sign), torch.full((len(images), 2), 0.5), strength)
    return (out.transpose(0, 1) * 255).clamp(0, 255).numpy()


def by_pillow(change: object, images: Tensor = SMOOTH) -> np.ndarray:
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return np.stack([np.asarray(change(p), dtype=np.float64) for p in pictures]).transpose(0, 3, 1, 2)


def enhance(kind: type, factor: float) -> object:
    return lambda picture: kind(picture).enhance(factor)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.7])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("colour", ImageEnhance.Color), ("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)],
)
def test_blends_are_pillows_at_the_codes_factor(name: str, kind: type, strength: float) -> None:
    """1.8 m / 10 + 0.1: nothing happens at magnitude 5, and 27 is a factor of almost 5."""
    wanted = by_pillow(enhance(kind, 1.8 * strength + 0.1))
    assert np.abs(applied(name, strength) - wanted).mean() < 2
    if strength == 0.5:
        assert np.abs(applied(name, strength) - SMOOTH.numpy()).max() < 0.01


def test_those_without_a_strength_are_pillows() -> None:
    for name, change in (
        ("invert", ImageOps.invert),
        ("equalise", ImageOps.equalize),
        ("auto-contrast", ImageOps.autocontrast),
    ):
        assert np.abs(applied(name, 1.0) - by_pillow(change)).mean() < 1.0, name


@pytest.mark.parametrize(("strength", "bits"), [(0.5, 2), (1.0, 4), (1.5, 6), (2.7, 8)])
def test_posterise_keeps_so_many_bits(strength: float, bits: int) -> None:
    wanted = SMOOTH.numpy() >> (8 - bits) << (8 - bits)
    assert np.abs(applied("posterise", strength) - wanted).max() < 0.01


def test_solarise_and_its_sum() -> None:
    x = SMOOTH.numpy().astype(np.int64)
    assert np.abs(applied("solarise", 0.5) - np.where(x < 128, x, 255 - x)).max() < 0.01
    assert np.abs(applied("solarise", 2.7) - x).max() < 0.01  # a threshold above white
    for strength in (0.5, 2.7):
        wanted = np.where(x < 128, np.minimum(x + int(110 * strength), 255), x)
        assert np.abs(applied("solarise add", strength) - wanted).max() < 0.01


def test_what_moves_goes_so_far_and_leaves_grey_behind() -> None:
    right = applied("translate x", 1.0, sign=-1.0)  # an eighth of 48 px is 6
    assert np.abs(right[..., 6:] - SMOOTH.numpy()[..., :-6]).max() < 0.1
    assert np.abs(right[..., :5] - 127.5).max() < 1
    down = applied("translate y", 0.5, sign=-1.0)
    assert np.abs(down[..., 3:, :] - SMOOTH.numpy()[..., :-3, :]).max() < 0.1
    turned = applied("rotate", 3.0)  # 90 degrees
    quarters = [np.rot90(SMOOTH.numpy(), k, axes=(2, 3)) for k in (1, 3)]
    assert min(np.abs(turned - quarter).max() for quarter in quarters) < 0.1
    back = applied("rotate", 3.0, sign=-1.0)
    assert min(np.abs(back - quarter).max() for quarter in quarters) < 0.1
    assert np.abs(back - turned).max() > 20
    sheared = applied("shear x", 1.0)
    assert np.abs(sheared[..., 24, 12:36] - SMOOTH.numpy()[..., 24, 12:36]).mean() < 4  # the middle stays
    assert np.abs(applied("shear x", 0.0) - SMOOTH.numpy()).max() < 0.01


def test_sharpness_goes_away_from_the_smoothed_image() -> None:
    kernel = np.ones((3, 3)) / 13
    kernel[1, 1] = 5 / 13
    x = IMAGES.numpy().astype(np.float64)
    smooth = x.copy()
    for dy in range(3):
        for dx in range(3):
            part = kernel[dy, dx] * x[:, :, dy : dy + 46, dx : dx + 46]
            smooth[:, :, 1:-1, 1:-1] = part if dy == dx == 0 else smooth[:, :, 1:-1, 1:-1] + part
    wanted = np.clip(smooth + (1.8 * 2.7 + 0.1) * (x - smooth), 0, 255)
    assert np.abs(applied("sharpness", 2.7, images=IMAGES) - wanted).max() < 0.1


def test_holes() -> None:
    x = torch.zeros(3, 2, 32, 32)
    holed = cut_out(x, 0.25, torch.tensor([[0.5, 0.5], [0.0, 0.99]]))
    assert int((holed[0, 0] > 0).sum()) == 16 * 16
    assert float(holed[0, 0, 8, 8]) == pytest.approx(128 / 255)
    assert int((holed[0, 1] > 0).sum()) == 8 * 9  # as far as the image goes
    assert torch.equal(holed[0], holed[2])


def key(n: int, epoch: int = 0) -> Key:
    return Key(0, torch.full((n,), epoch), torch.arange(n))


def test_each_operation_is_as_likely_as_any_other() -> None:
    assert len(OPERATIONS) == len(small_operations()) == 16
    views = noisy_view(View(size=32, scale=None))
    u = views.plan(key(3200))["randaugment"]
    counts = torch.bincount((u[:, 0] * 16).long(), minlength=16)
    assert (counts - 200).abs().max() < 4 * 200**0.5
    assert float((u[:, 1] < 0.5).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_a_row_is_its_own_operation_whoever_stands_beside_it() -> None:
    views = noisy_view(View(size=48, scale=None, padding=4), magnitude=9, hole=0.1)
    images = SMOOTH.repeat(4, 1, 1, 1)
    whole = views.render(images, views.plan(key(24)), key(24))
    rows = torch.tensor([17, 3])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    torch.testing.assert_close(views.render(images[rows], views.plan(part), part).x, whole.x[rows])
    assert not torch.equal(views.render(images, views.plan(key(24, 1)), key(24, 1)).x, whole.x)
    torch.testing.assert_close(
        operation(images.transpose(0, 1).float() / 255, torch.rand(24, 4), 0.0).isfinite().all(), torch.tensor(True)
    )


def test_without_noise_it_is_the_view_and_evaluation_never_has_any() -> None:
    view = View(size=32, scale=(0.5, 1.0))
    quiet, plain = noisy_view(view, magnitude=0), one_view(view)
    ours = quiet.render(IMAGES, quiet.plan(key(6)), key(6)).x
    torch.testing.assert_close(ours, plain.render(IMAGES, plain.plan(key(6)), key(6)).x)
    noisy = noisy_view(view, magnitude=27)
    assert noisy.plain == plain.plain
    assert "2 of 16 operations at magnitude 27" in noisy.describe()
    assert "operations" not in quiet.describe()
    with pytest.raises(ValueError, match="none of them can be below 0"):
        noisy_view(view, magnitude=-1)
    assert math.isfinite(float(noisy.render(IMAGES, noisy.plan(key(6)), key(6)).x.sum()))
