"""CIE Lab of sRGB colours at the white point D65: lightness in 0 to 100, and a (green to red) and b (blue to yellow).

Functions of planes of one shape, red, green and blue in [0, 1]. Matrix and white are IEC 61966-2-1's as scikit-image
prints them, whose Lab colorization's code takes: a and b of sRGB lie in about -108 to 98.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_RGB = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64)).tolist()
_WHITE = (0.95047, 1.0, 1.08883)
_DARK = 0.008856
"""Below this share of white the cube root gives way to a line."""

Plane = Float[Tensor, "*shape"]


def lightness(r: Plane, g: Plane, b: Plane) -> Plane:
    """L alone.

    >>> round(float(lightness(*torch.tensor([0.5, 0.5, 0.5]))), 1)
    53.4
    """
    linear = [_linear(plane) for plane in (r, g, b)]
    return 116 * _root(_mixed(_XYZ[1], linear)) - 16


def to_lab(r: Plane, g: Plane, b: Plane) -> tuple[Plane, Plane, Plane]:
    """L, a and b.

    >>> [round(float(x), 1) for x in to_lab(*torch.tensor([1.0, 0.0, 0.0]))]  # red
    [53.2, 80.1, 67.2]
    """
    linear = [_linear(plane) for plane in (r, g, b)]
    x, y, z = (_root(_mixed(row, linear) / white) for row, white in zip(_XYZ, _WHITE, strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def to_rgb(lightness: Plane, a: Plane, b: Plane) -> tuple[Plane, Plane, Plane]:
    """Red, green and blue; what no screen can show is cut off at 0 and 1."""
    y = (lightness + 16) / 116
    xyz = [_power(f.clamp_min(0)) * white for f, white in zip((y + a / 500, y, y - b / 200), _WHITE, strict=True)]
    red, green, blue = (_mixed(row, xyz).clamp(0, 1) for row in _RGB)
    return _curved(red), _curved(green), _curved(blue)


def _mixed(shares: tuple[float, ...] | list[float], planes: list[Plane]) -> Plane:
    return shares[0] * planes[0] + shares[1] * planes[1] + shares[2] * planes[2]


def _linear(x: Plane) -> Plane:
    return torch.where(x > 0.04045, ((x + 0.055) / 1.055).clamp_min(0) ** 2.4, x / 12.92)


def _curved(x: Plane) -> Plane:
    return torch.where(x > 0.0031308, 1.055 * x.clamp_min(1e-4) ** (1 / 2.4) - 0.055, 12.92 * x)


def _root(t: Plane) -> Plane:
    return torch.where(t > _DARK, t.clamp_min(1e-4) ** (1 / 3), 7.787 * t + 16 / 116)


def _power(f: Plane) -> Plane:
    return torch.where(f > 0.2068966, f**3, ((f - 16 / 116) / 7.787).clamp_min(0))
