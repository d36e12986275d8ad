"""Exemplar-CNN's colours, batched: contrast along principal components, powers of saturation and value, hue.

Images are channels first (``c n h w``) in [0, 1]; every sample has its own numbers, the same for all of its pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.views.colour import turn_hue_

DRAWS = 10
"""Numbers in [0, 1) for one recolouring."""

_MEAN = (0.485, 0.456, 0.406)
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""The mean and the principal components (columns) of ImageNet's pixels, as AlexNet's descendants have them
(facebookarchive/fb.resnet.torch, datasets/imagenet.lua)."""
_FACTORS = (0.5, 2.0)
_POWERS, _TIMES, _PLUS = (0.25, 4.0), (0.7, 1.4), 0.1
_TURN = 0.1


def recolour(x: Float[Tensor, "c n h w"], u: Float[Tensor, "n 10"]) -> Float[Tensor, "c n h w"]:
    """``contrast``, ``saturate`` and a turn of the hue by up to a tenth of the circle.

    Factors and powers are log-uniform, so that each is as likely as its inverse; sums and turns are uniform. Images of
    other than three channels have one contrast, about the middle, and powers of their values.
    """
    u = u.to(x)
    factors, powers = between(u[:, :3], _FACTORS), between(u[:, 3:5], _POWERS)
    times, plus = between(u[:, 5:7], _TIMES), (2 * u[:, 7:9] - 1) * _PLUS
    if len(x) != 3:
        x = ((x - 0.5) * factors[:, 0, None, None] + 0.5).clamp(0, 1)
        return power(x, powers[:, 1], times[:, 1], plus[:, 1])
    return turn_hue_(saturate(contrast(x, factors), powers, times, plus), (2 * u[:, 9] - 1) * _TURN)


def between(u: Float[Tensor, "n k"], ends: tuple[float, float]) -> Float[Tensor, "n k"]:
    """Log-uniform between ``ends``."""
    return ends[0] * (ends[1] / ends[0]) ** u


def contrast(x: Float[Tensor, "3 n h w"], factors: Float[Tensor, "n 3"]) -> Float[Tensor, "3 n h w"]:
    """Scales what each pixel has of each principal component of natural colours, about their mean."""
    axes = torch.linalg.qr(torch.tensor(_COMPONENTS, dtype=torch.float64))[0].to(x)  # printed to four digits only
    mean = torch.tensor(_MEAN).to(x)[:, None, None, None]
    change = torch.einsum("ik,nk,jk->nij", axes, factors, axes)
    return torch.einsum("nij,jnhw->inhw", change, x - mean).add_(mean).clamp_(0, 1)


def power(
    x: Float[Tensor, "... n h w"], p: Float[Tensor, " n"], times: Float[Tensor, " n"], plus: Float[Tensor, " n"]
) -> Float[Tensor, "... n h w"]:
    """``times x^p + plus``, within [0, 1]."""
    p, times, plus = (numbers[:, None, None] for numbers in (p, times, plus))
    return (x**p * times + plus).clamp_(0, 1)


def saturate(
    x: Float[Tensor, "3 n h w"], powers: Float[Tensor, "n 2"], times: Float[Tensor, "n 2"], plus: Float[Tensor, "n 2"]
) -> Float[Tensor, "3 n h w"]:
    """``power`` of each pixel's saturation and value, at its own hue.

    A channel is ``value (1 - saturation (1 - t))``, t its place between the smallest and the largest: only these two
    change. What is grey has no hue and stays so.
    """
    high, low = x.amax(0), x.amin(0)
    chroma = high - low
    place = (x - low) / chroma.clamp_min(1e-6)
    saturation = power(chroma / high.clamp_min(1e-6), powers[:, 0], times[:, 0], plus[:, 0])
    saturation = torch.where(chroma > 1e-4, saturation, 0)
    return power(high, powers[:, 1], times[:, 1], plus[:, 1]) * (1 - saturation * (1 - place))
