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


def bands(sigma: Float[Tensor, " n"], size: int, radius: int) -> Float[Tensor, "n p s"]:
    """The blur of one axis for each sample, transposed: inputs by outputs."""
    radius = min(radius, size - 1)
    d = torch.arange(radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (d / sigma[:, None]).square())
    taps = torch.where(taps < 1e-8, 0, taps)  # denormal numbers would make the products ten times slower
    taps = taps / (2 * taps.sum(1, keepdim=True) - taps[:, :1])
    return (taps @ _places(size, radius, sigma.device)).view(-1, size, size)


def blur_(x: Float[Tensor, "c n s s"], sigma: Float[Tensor, " n"], radius: int) -> Tensor:
    """Blurs each sample by its ``sigma``, in pixels, with ``2 radius + 1`` taps."""
    size = x.shape[-1]
    band = bands(sigma, size, radius)
    back = band.transpose(1, 2)
    for plane in x:
        if size <= 2 * _BLOCK:
            torch.bmm(back, torch.bmm(plane, band), out=plane)
            continue
        spans = [(max(0, a - radius), a, min(a + _BLOCK, size), a + _BLOCK + radius) for a in range(0, size, _BLOCK)]
        wide = torch.cat([torch.bmm(plane[:, :, lo:hi], band[:, lo:hi, a:e]) for lo, a, e, hi in spans], dim=2)
        torch.cat([torch.bmm(back[:, a:e, lo:hi], wide[:, lo:hi]) for lo, a, e, hi in spans], dim=1, out=plane)
    return x
