"""Regression of one representation onto another."""

from jaxtyping import Float
from torch import Tensor

from selfsight.losses.precision import unit


def cosine_regression(p: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    r"""BYOL's squared distance of normalised predictions and targets (Grill et al., 2020, eq. 2).

    .. math:: L = \frac1b \sum_i \lVert \hat p_i - \hat z_i \rVert^2 = \frac1b \sum_i (2 - 2 \cos(p_i, z_i)) \in [0, 4]

    One direction; BYOL adds both. The target is not detached here.

    >>> import torch
    >>> p = torch.eye(4)
    >>> cosine_regression(p, 3 * p), cosine_regression(p, -p)
    (tensor(0.), tensor(4.))
    """
    return (unit(p, dim=1) - unit(z, dim=1)).square().sum(dim=1).mean()
