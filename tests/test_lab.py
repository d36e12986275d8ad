"""CIE Lab: known colours, an inverse, and the definition written out for one colour at a time."""

import pytest
import torch

from selfsight.lab import lightness, to_lab, to_rgb


def by_definition(r: float, g: float, b: float) -> tuple[float, float, float]:
    linear = [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in (r, g, b)]
    matrix = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
    ratios = [
        sum(m * v for m, v in zip(row, linear, strict=True)) / w
        for row, w in zip(matrix, (0.95047, 1.0, 1.08883), strict=True)
    ]
    f = [t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in ratios]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def colours(n: int) -> torch.Tensor:
    levels = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.cartesian_prod(levels, levels, levels).T


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 1, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 1), (32.2970, 79.1875, -107.8602)),
    ],
)
def test_known_colours(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = to_lab(*torch.tensor(rgb, dtype=torch.float64))
    assert [float(x) for x in found] == pytest.approx(lab, abs=0.02)


def test_all_colours_by_definition() -> None:
    rgb = colours(7)
    found = torch.stack(to_lab(*rgb), dim=1)
    expected = torch.tensor([by_definition(*colour) for colour in rgb.T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(lightness(*rgb), found[:, 0])


def test_there_and_back() -> None:
    rgb = colours(18).float()
    back = torch.stack(to_rgb(*to_lab(*rgb)))
    torch.testing.assert_close(back, rgb, atol=2e-4, rtol=0)
    far = to_rgb(torch.tensor([50.0]), torch.tensor([-200.0]), torch.tensor([300.0]))
    assert all(0 <= float(x) <= 1 for x in far)
