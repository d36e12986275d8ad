r"""Counting: what the tiles of an image hold adds up to what the whole holds, and not to what another image holds."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfsight.losses.precision import full


def counting(
    whole: Float[Tensor, "b k"],
    tiles: Float[Tensor, "b 4 k"],
    other: Float[Tensor, "b k"],
    *,
    margin: float = 10.0,
    differs: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    r"""The contrastive counting loss (Noroozi et al., 2017, eq. 5).

    With the counts :math:`\phi(D x)` of the downsampled image (``whole``), :math:`\phi(T_j x)` of its tiles and
    :math:`\phi(D y)` of another downsampled image (``other``),

    .. math:: L = \frac1b \sum_x \Big\lVert \phi(D x) - \sum_j \phi(T_j x) \Big\rVert^2
        + \max\Big\{0,\; M - \Big\lVert \phi(D y) - \sum_j \phi(T_j x) \Big\rVert^2\Big\}

    Norms are of the whole vector, not by unit. Counts of zero, with which the first term is content, cost ``margin``,
    :math:`M`. Rows in which the other image is the same one (``differs`` is False) have no second term.

    >>> zero = torch.zeros(3, 8)
    >>> counting(zero, torch.zeros(3, 4, 8), zero)
    tensor(10.)
    """
    if margin <= 0:
        raise ValueError(f"the counting loss got a margin of {margin:g}; without one above 0 counting nothing is best")
    total = full(tiles).sum(dim=1)
    equal = (full(whole) - total).square().sum(dim=1)
    apart = (margin - (full(other) - total).square().sum(dim=1)).clamp_min(0)
    if differs is not None:
        apart = torch.where(differs, apart, 0)
    return (equal + apart).mean()
