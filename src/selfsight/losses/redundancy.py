"""Redundancy reduction: losses of the correlations between features, not of pairs of images."""

from jaxtyping import Float
from torch import Tensor

from selfsight.losses.precision import full, no_autocast


def cross_correlation(z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"]) -> Float[Tensor, "d d"]:
    r"""``C = z1ᵀ z2 / b`` of two views whose features are already standardised over the (joined) batch.

    The mean of this over processes with equally many rows is that of the joined batch.

    >>> import torch
    >>> cross_correlation(torch.eye(2), torch.eye(2))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    with no_autocast(z1):
        return full(z1).T @ full(z2) / len(z1)


def barlow_twins(c: Float[Tensor, "d d"], *, weight: float = 0.0051) -> Float[Tensor, ""]:
    r"""Barlow Twins' objective (Zbontar et al., 2021, eq. 1) of the cross-correlation ``c`` between two views.

    .. math:: L = \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2

    ``weight`` is λ; 0.0051 is the official code's value (the paper's text rounds it to 0.005).

    >>> import torch
    >>> barlow_twins(torch.eye(3))
    tensor(0.)
    """
    c = full(c)
    on = (1 - c.diagonal()).square().sum()
    off = c.square().fill_diagonal_(0).sum()
    return on + weight * off
