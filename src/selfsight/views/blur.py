"""Gaussian blur with each sample's own width: two banded matrix products, borders reflected.

``B[i, j]`` sums the taps ``g(d) = exp(-d^2 / 2 sigma^2)``, normalised over ``|d| <= radius``, of every d whose pixel
i + d is j after reflection at the borders; the view is then ``B X B'``.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 64
"""Outputs computed together: of a band wider images need only the part near it."""


@lru_cache(maxsize=16)
def _places(size: int, radius: int, device: torch.device) -> Float[Tensor, "d p"]:
    """How often distance d leads from output i to input j, as ``[d, j * size + i]``."""
    i = torch.arange(size)
    places = torch.zeros(radius + 1, size, size)
    for d in range(-radius, radius + 1):
        j = (i + d).abs()
        j = torch.where(j >= size, 2 * (size - 1) - j, j)
        places[abs(d), j, i] += 1
    return places.view(radius + 1, -1).to(device)


@lru_cache(maxsize=16)
def _windows(size: int, radius: int, device: torch.device) -> list[tuple[slice, Float[Tensor, "d p"]]]:
    """For each block of outputs the inputs that reach it, and the part of ``_places`` that leads there."""
    places = _places(size, radius, device).view(-1, size, size)
    found: list[tuple[slice, Tensor]] = []
    for start in range(0, size, _BLOCK):
        inputs = slice(max(0, start - radius), min(start + _BLOCK + radius, size))
        found.append((inputs, places[:, inputs, start : start + _BLOCK].flatten(1).contiguous()))
    return found


def _taps(sigma: Float[Tensor, " n"], radius: int) -> Float[Tensor, "n d"]:
    d = torch.arange(radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (d / sigma[:, None]).square())
    taps = torch.where(taps < 1e-8, 0, taps)  # denormal numbers would make the products ten times slower
    return taps / (2 * taps.sum(1, keepdim=True) - taps[:, :1])


def bands(sigma: Float[Tensor, " n"], size: int, radius: int) -> Float[Tensor, "n p s"]:
    """The blur of one axis for each sample, transposed: inputs by outputs."""
    radius = min(radius, size - 1)
    return (_taps(sigma, radius) @ _places(size, radius, sigma.device)).view(-1, size, size)


def blur_(x: Float[Tensor, "c n s s"], sigma: Float[Tensor, " n"], radius: int) -> Tensor:
    """Blurs each sample by its ``sigma``, in pixels, with ``2 radius + 1`` taps."""
    size = x.shape[-1]
    if size > 2 * _BLOCK:
        return _blur_in_blocks_(x, sigma, min(radius, size - 1))
    band = bands(sigma, size, radius)
    back = band.transpose(1, 2)
    for plane in x:
        torch.bmm(back, torch.bmm(plane, band), out=plane)
    return x


def _blur_in_blocks_(x: Float[Tensor, "c n s s"], sigma: Float[Tensor, " n"], radius: int) -> Tensor:
    """The same with only those parts of the bands that are not zero."""
    size, taps = x.shape[-1], _taps(sigma, radius)
    blocks = [
        (inputs, (taps @ places).view(len(sigma), inputs.stop - inputs.start, -1))
        for inputs, places in _windows(size, radius, sigma.device)
    ]
    for plane in x:
        wide = torch.cat([torch.bmm(plane[:, :, inputs], band) for inputs, band in blocks], dim=2)
        torch.cat([torch.bmm(band.transpose(1, 2), wide[:, inputs]) for inputs, band in blocks], dim=1, out=plane)
    return x
