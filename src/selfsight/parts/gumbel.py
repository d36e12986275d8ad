r"""Gumbel noise that depends on each sample's seed alone, and the softmax relaxed by it.

A large image has a thousand places and each place eight thousand codes: too many numbers for a plan, and a device's own
generator would give other numbers to other processes. So each number is a hash of the sample's seed and its place: the
32-bit finaliser of Wellons (``prospector``; 0x7feb352d, 0x846ca68b), once with each half of the seed.

.. math:: g = -\log(-\log u), \qquad y = \mathrm{softmax}((\ell + g) / \tau)

Jang, Gu, Poole, arXiv 1611.01144; Maddison, Mnih, Teh, arXiv 1611.00712.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.losses.precision import full


def gumbel(seed: Int[Tensor, "b 2"], count: int) -> Float[Tensor, "b n"]:
    """``count`` numbers of the standard Gumbel distribution for each sample.

    >>> g = gumbel(torch.tensor([[1, 2], [3, 4]]), 10_000)
    >>> bool((g.mean(dim=1) - 0.5772).abs().max() < 0.05)
    True
    """
    place = torch.arange(count, dtype=torch.int32, device=seed.device)
    first, second = seed.to(torch.int32).unbind(dim=1)
    x = _mix_(place[None] * -1640531527 + first[:, None] * 668265263 + 374761393)
    x = _mix_(x ^ second[:, None] * -1028477387)
    u = ((x >> 9) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)  # in (0, 1), both ends left out in float32
    return u.log_().neg_().log_().neg_()


def _mix_(x: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Wellons's finaliser on 32-bit words; products wrap round, and what a shift brings in from the sign is cut off."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= -2073254261  # 0x846ca68b
    x ^= (x >> 16) & 0xFFFF
    return x


def gumbel_softmax(
    logits: Float[Tensor, "b k h w"], seed: Int[Tensor, "b 2"], *, temperature: float
) -> Float[Tensor, "b k h w"]:
    """A relaxed draw of a code in each place: nearly one-hot where ``temperature`` is low, with a gradient for all."""
    logits = full(logits)
    b, k, h, w = logits.shape
    noise = gumbel(seed, h * w * k).view(b, h, w, k).permute(0, 3, 1, 2)
    return ((logits + noise.to(logits)) / temperature).softmax(dim=1)
