"""InvaSpread's loss: views of one image are invariant, images are spread out, each term with a logarithm of its own."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # torch's own

from selfsight.losses.precision import no_autocast, unit

_ENTRIES = 1 << 20
"""Scores that are held at a time."""


def invariance_and_spreading(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: float = 0.1,
    weight: float = 1.0,
    detach_keys: bool = True,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""Two views are each other's instance, and no other embedding is (Ye et al., 2019).

    With :math:`S_{ij} = e^{\hat z_i^\top \hat z_j / \tau}` over the ``2n`` embeddings, :math:`\pi(i)` the other view of
    :math:`i`, and :math:`D_i = S_{i\pi(i)} + m \sum_{j \ne i, \pi(i)} S_{ij}`,

    .. math:: L = -\frac1{2b} \sum_i \Big[\log \frac{S_{i\pi(i)}}{D_i}
        + m \sum_{j \ne i, \pi(i)} \log\Big(1 - \frac{S_{ij}}{D_i}\Big)\Big] .

    ``weight`` is :math:`m`, at least 1. ``detach_keys`` lets the gradient reach :math:`\hat z_i` in each inner product
    and not :math:`\hat z_j`, as the official code does: half of what the formula says. ``all1``, ``all2`` and
    ``offset`` are as in :class:`selfsight.losses.contrastive.PairLoss`. :math:`1 - P` is summed from what is left where
    one negative has most of the mass, so the loss is finite and exact there. Rows are computed in blocks and again in
    the backward pass.

    >>> z = torch.ones(128, 16)  # all alike: log 255 - 254 log(1 - 1/255)
    >>> round(float(invariance_and_spreading(z, z)), 3)
    6.539
    """
    if (all1 is None) != (all2 is None):
        raise ValueError("invariance_and_spreading got only one of all1 and all2; give both gathered views or neither")
    if all1 is None or all2 is None:
        all1, all2 = z1, z2
    b, n = len(z1), len(all1)
    if n < 2 or not 0 <= offset <= n - b:
        raise ValueError(
            f"invariance_and_spreading got {b} rows at {offset} among {n} images; it needs 2 images or more"
        )
    if weight < 1:
        raise ValueError(f"the weight of the negatives is {weight:g}; below 1 their probabilities can pass 1")
    anchors = unit(torch.cat([z1, z2]), dim=1)
    keys = unit(torch.cat([all1, all2]), dim=1)
    if detach_keys:
        keys = keys.detach()
    own = torch.arange(offset, offset + b, device=z1.device)
    own, other = torch.cat([own, own + n]), torch.cat([own + n, own])
    side = max(_ENTRIES // (2 * n), 1)
    parts: list[Tensor] = []
    for start in range(0, 2 * b, side):
        rows = slice(start, start + side)
        block = anchors[rows] / temperature, keys, own[rows], other[rows], weight
        parts.append(checkpoint(_rows, *block, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts).mean()


def _rows(
    anchors: Float[Tensor, "r d"],
    keys: Float[Tensor, "n d"],
    own: Int[Tensor, " r"],
    other: Int[Tensor, " r"],
    weight: float,
) -> Float[Tensor, " r"]:
    """The loss of some anchors."""
    with no_autocast(anchors):
        scores = anchors @ keys.T
    own, other = own[:, None], other[:, None]
    positive = scores.gather(1, other)
    negative = scores.scatter(1, own, -torch.inf).scatter(1, other, -torch.inf)
    log_d = torch.logaddexp(positive, math.log(weight) + negative.logsumexp(dim=1, keepdim=True))
    log_p = negative - log_d

    # log(1 - p): of all but the likeliest p is at most a half; of that one it comes from what the others leave
    likeliest = negative.argmax(dim=1, keepdim=True)
    spread = torch.log1p(-log_p.scatter(1, likeliest, -torch.inf).exp()).sum(dim=1, keepdim=True)
    surplus = negative.gather(1, likeliest) + (math.log(weight - 1) if weight > 1 else -math.inf)
    left = (negative + math.log(weight)).scatter(1, likeliest, surplus).scatter(1, other, positive)
    spread = spread + left.logsumexp(dim=1, keepdim=True) - log_d
    return -(positive - log_d + weight * spread)[:, 0]
