"""AutoAugment's primitives against torchvision's at equal strength, and how they are drawn."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF  # noqa: N812

from selfsight.views.primitives import DRAWS, PRIMITIVES, primitive

STRENGTHS = [-0.93, -0.4, 0.0, 0.31, 0.87]


def pictures(n: int, size: int = 24, channels: int = 3) -> Tensor:
    """Images ``n c h w`` of 256 levels, in [0, 1], smooth with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0.3, 0.7)
    noise = 0.05 * torch.randn(n, channels, size, size, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round() / 255


def changed(name: str, x: Tensor) -> Tensor:
    """Image ``i`` after the primitive at strength ``i``."""
    places = torch.full((len(x), 2), 0.5)
    return PRIMITIVES[name](x.transpose(0, 1).clone(), torch.tensor(STRENGTHS), places).transpose(0, 1)


def expected(name: str, x: Tensor, s: float) -> Tensor:
    """Torchvision's result; where an image moves, its zeros come in."""
    if name in COLOURS:
        return COLOURS[name](x, s)
    moved = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **MOVES[name](s, x.shape[-1])}
    return TF.affine(x, **moved, interpolation=InterpolationMode.BILINEAR, fill=[0.0])


def levels(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


COLOURS = {
    "auto-contrast": lambda x, s: TF.autocontrast(x),
    "invert": lambda x, s: TF.invert(x),
    "equalise": lambda x, s: TF.equalize(levels(x)) / 255,
    "solarise": lambda x, s: TF.solarize(x, (s + 1) / 2),
    "posterise": lambda x, s: TF.posterize(levels(x), 4 + math.floor(2.5 * (s + 1))) / 255,
    "contrast": lambda x, s: TF.adjust_contrast(x, 1 + 0.9 * s),
    "colour": lambda x, s: TF.adjust_saturation(x, 1 + 0.9 * s),
    "brightness": lambda x, s: TF.adjust_brightness(x, 1 + 0.9 * s),
    "sharpness": lambda x, s: TF.adjust_sharpness(x, 1 + 0.9 * s),
}
MOVES = {
    "rotate": lambda s, size: {"angle": -30 * s},
    "shear x": lambda s, size: {"shear": [math.degrees(math.atan(0.3 * s)), 0.0]},
    "shear y": lambda s, size: {"shear": [0.0, math.degrees(math.atan(0.3 * s))]},
    "translate x": lambda s, size: {"translate": [-150 / 331 * s * size, 0.0]},
    "translate y": lambda s, size: {"translate": [0.0, -150 / 331 * s * size]},
}


@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name != "cutout"])
def test_it_is_torchvisions(name: str) -> None:
    x = pictures(len(STRENGTHS))
    mine = changed(name, x)
    assert not torch.equal(mine, x)
    inside = slice(9, 15) if name in ("shear x", "shear y", "rotate") else slice(None)
    for image, ours, s in zip(x, mine, STRENGTHS, strict=True):
        theirs = expected(name, image, s)
        if name.startswith("translate"):  # torchvision fills with black here, and blends it at the border
            shown = expected(name, torch.ones_like(image), s) == 1
            torch.testing.assert_close(ours[shown], theirs[shown], rtol=0, atol=1e-4)
            assert (ours[expected(name, torch.ones_like(image), s) == 0] - 0.5).abs().sum() < 1e-4
            continue
        torch.testing.assert_close(ours[:, inside, inside], theirs[:, inside, inside], rtol=0, atol=2e-3)


def test_equalising_changes_large_images_alone() -> None:
    large, small = pictures(5, 64), pictures(5, 8)
    assert not torch.equal(changed("equalise", large), large)
    torch.testing.assert_close(changed("equalise", large)[2], TF.equalize((large[2] * 255).to(torch.uint8)) / 255)
    assert torch.equal(changed("equalise", small), small)


def test_a_hole_is_cut_where_it_was_drawn() -> None:
    x = torch.ones(3, 2, 331, 331)
    y = PRIMITIVES["cutout"](x.clone(), torch.tensor([1.0, 0.0]), torch.tensor([[0.5, 0.25], [0.0, 0.5]]))
    holes = [(y[0, i] == 0.5).nonzero() for i in range(2)]
    assert [len(hole) for hole in holes] == pytest.approx([60 * 60, 15 * 30], rel=0.05)
    assert holes[0].float().mean(dim=0).tolist() == pytest.approx([165, 82.5], abs=1)


def test_all_are_drawn_alike_and_a_sample_depends_on_its_own_numbers() -> None:
    u = torch.rand(3000, DRAWS, generator=torch.Generator().manual_seed(0))
    counts = (u[:, 0] * len(PRIMITIVES)).long().bincount(minlength=len(PRIMITIVES))
    assert len(PRIMITIVES) == 15
    assert (counts - 200).abs().max() < 70
    x = pictures(40).transpose(0, 1)
    whole = primitive(x, u[:40])
    some = primitive(x[:, [7, 31]], u[[7, 31]])
    torch.testing.assert_close(some, whole[:, [7, 31]])
    assert whole.min() >= -1e-6
    assert whole.max() <= 1 + 1e-6
    kept = x.clone()
    primitive(x, u[:40])
    assert torch.equal(x, kept)


def test_images_of_one_channel() -> None:
    x = pictures(60, channels=1).transpose(0, 1)
    u = torch.rand(60, DRAWS, generator=torch.Generator().manual_seed(0))
    assert primitive(x, u).isfinite().all()
