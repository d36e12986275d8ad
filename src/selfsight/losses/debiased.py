r"""Contrastive losses that correct their negatives: for false ones (debiased), and towards hard ones.

With :math:`s_{ij}` the cosines divided by the temperature :math:`\tau`, :math:`s_i^+` the positive's, and the
:math:`N = 2n - 2` other images' embeddings as negatives, both replace the sum over negatives by an estimate,

.. math:: L = \frac1{2b} \sum_i -\log \frac{e^{s_i^+}}{e^{s_i^+} + N g_i}, \qquad
    N g_i = \max\Big\{ \frac{\sum_j w_{ij} e^{s_{ij}} - \tau^+ N e^{s_i^+}}{1 - \tau^+},\; N e^{-1/\tau} \Big\}, \qquad
    w_{ij} = \frac{e^{\beta s_{ij}}}{\frac1N \sum_k e^{\beta s_{ik}}}.

A share :math:`\tau^+` of the negatives shows the anchor's own class; what these add is taken off, estimated from the
positive. :math:`\beta` weighs the negatives that are near the anchor. The floor is the least value that a mean of
exponentials can have; where it is active the estimate has no gradient.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.contrastive import Pairs, Temperature, paired


def debiased(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    tau_plus: float,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""The debiased contrastive loss (Chuang et al., 2020, with one positive), which knows that negatives err.

    ``tau_plus`` is the probability that a random image shares the anchor's class, in [0, 1); with 0 this is NT-Xent.
    Gradient flows through the subtracted positive too. The rest as in :class:`~selfsight.losses.contrastive.PairLoss`.

    >>> z = torch.ones(4, 16)
    >>> debiased(z, z, temperature=0.5, tau_plus=0.1)  # all alike: log(2 * 4 - 1), whatever tau_plus
    tensor(1.9459)
    """
    return hard_negatives(
        z1, z2, temperature=temperature, tau_plus=tau_plus, beta=0.0, all1=all1, all2=all2, offset=offset
    )


def hard_negatives(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    tau_plus: float,
    beta: float,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""Contrastive learning with hard negatives (Robinson et al., 2021): each weighs as it is near the anchor.

    ``beta`` is the weights' concentration, at least 0; with 0 this is :func:`debiased`. Gradient flows through the
    weights too. The rest as in :class:`~selfsight.losses.contrastive.PairLoss`.

    >>> z = torch.ones(4, 16)
    >>> hard_negatives(z, z, temperature=0.5, tau_plus=0.1, beta=1.0)
    tensor(1.9459)
    """
    pairs = paired(z1, z2, temperature=temperature, all1=all1, all2=all2, offset=offset)
    estimate, floor = _log_negatives(pairs, temperature, tau_plus, beta)
    return softplus(estimate.clamp(min=floor) - pairs.positive).mean()


def share_at_the_floor(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    tau_plus: float,
    beta: float = 0.0,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """The share of anchors whose estimate lies below the floor: where it rises, ``tau_plus`` is too large.

    >>> z = torch.eye(4)
    >>> share_at_the_floor(z, z, temperature=0.5, tau_plus=0.1), share_at_the_floor(z, z, temperature=0.5, tau_plus=0.2)
    (tensor(0.), tensor(1.))
    """
    pairs = paired(z1, z2, temperature=temperature, all1=all1, all2=all2, offset=offset)
    estimate, floor = _log_negatives(pairs, temperature, tau_plus, beta)
    return (estimate < floor).to(estimate.dtype).mean()


def effective_negatives(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    beta: float,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""The effective number of negatives, :math:`(\sum_j w_{ij})^2 / \sum_j w_{ij}^2`, as a mean over anchors.

    All of them where ``beta`` is 0, near 1 where one negative has all the weight.

    >>> z = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    >>> effective_negatives(z, z, temperature=0.5, beta=0.0)
    tensor(6.)
    """
    pairs = paired(z1, z2, temperature=temperature, all1=all1, all2=all2, offset=offset)
    return (2 * pairs.negatives(beta) - pairs.negatives(2 * beta)).exp().mean()


def _log_negatives(
    pairs: Pairs, temperature: Temperature, tau_plus: float, beta: float
) -> tuple[Float[Tensor, " a"], Float[Tensor, ""]]:
    r"""For each anchor :math:`\log (N g_i)` before the floor, ``-inf`` where it is below zero; and the floor's log."""
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus is a probability below 1; got {tau_plus}")
    if beta < 0:
        raise ValueError(f"beta must be at least 0; got {beta}")
    log_n = math.log(pairs.count)
    estimate = pairs.negatives(1 + beta)
    if beta:
        estimate = estimate - pairs.negatives(beta) + log_n
    if tau_plus:
        false = pairs.positive + (math.log(tau_plus) + log_n)
        estimate = _log_difference(estimate, false) - math.log1p(-tau_plus)
    return estimate, torch.as_tensor(log_n - 1 / temperature, dtype=estimate.dtype, device=estimate.device)


def _log_difference(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``log(exp(a) - exp(b))``; ``-inf`` without gradient where that is not above zero."""
    gap = b - a
    positive = gap < 0
    gap = torch.where(positive, gap, -1.0)  # before the logarithm, whose gradient would be NaN times zero elsewhere
    return torch.where(positive, a + (-torch.expm1(gap)).log(), -torch.inf)
