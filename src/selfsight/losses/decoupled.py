r"""Contrastive losses without the positive in the denominator: decoupled, and FlatNCE.

With :math:`\ell_i` the log of the summed exponentials of anchor ``i``'s negatives and :math:`s_i^+` its positive's
score, InfoNCE is :math:`\mathrm{softplus}(v_i)` of :math:`v_i = \ell_i - s_i^+`. Its gradient has the factor
:math:`1 - p_i^+`, which vanishes when the positive is found easily. Both losses here have the gradient of :math:`v_i`
itself, so that small batches, whose positives are easy, teach as large ones do.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.contrastive import Temperature, everyone, paired
from selfsight.losses.precision import unit


def decoupled(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    sigma: float | None = None,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""Decoupled contrastive learning (Yeh et al., 2022, arXiv 2110.06848, eq. 6), not to be taken for the debiased.

    .. math:: L = \frac1{2b} \sum_i \Big[-w_i s_i^+ + \log \sum_j e^{s_{ij}}\Big], \qquad
        w_i = 1 \quad\text{or}\quad w_i = 2 - \frac{e^{c_i / \sigma}}{\frac1n \sum_k e^{c_k / \sigma}}

    over the negatives ``j``, :math:`c_i` being the cosine of image ``i``'s two views. With ``sigma`` the positives have
    the von Mises-Fisher weights (DCLW): of mean 1 over all images, larger for views that lie far apart, and without
    gradient. The rest as in :class:`~selfsight.losses.contrastive.PairLoss`. The loss has no lower bound of zero.

    >>> z = torch.ones(4, 16)
    >>> decoupled(z, z, temperature=0.1), decoupled(z, z, temperature=0.1, sigma=0.5)  # all alike: log(2 * 4 - 2)
    (tensor(1.7918), tensor(1.7918))
    """
    pairs = paired(z1, z2, temperature=temperature, all1=all1, all2=all2, offset=offset)
    if sigma is None:
        return (pairs.negatives() - pairs.positive).mean()
    weights = von_mises_fisher_weights(*everyone(z1, z2, all1, all2), sigma=sigma)[offset : offset + len(z1)]
    return (pairs.negatives() - weights.repeat(2) * pairs.positive).mean()


@torch.no_grad()
def von_mises_fisher_weights(
    z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], *, sigma: float
) -> Float[Tensor, " n"]:
    """The weights of DCLW: 2 minus a softmax over the pairs of views, scaled to a mean of 1; without gradient."""
    if sigma <= 0:
        raise ValueError(f"sigma must be greater than 0; got {sigma}")
    cosines = (unit(z1, dim=1) * unit(z2, dim=1)).sum(dim=1)
    scaled = cosines / sigma
    return 2 - (scaled - scaled.logsumexp(dim=0) + math.log(len(z1))).exp()


def flat_nce(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""FlatNCE (Chen et al., 2021, arXiv 2107.01152): always 1; what counts is the gradient.

    .. math:: L = \frac1{2b} \sum_i \exp\big(v_i - \mathrm{sg}(v_i)\big), \qquad
        v_i = \log \sum_j e^{s_{ij} - s_i^+}, \qquad
        \nabla L_i = \nabla v_i = \frac{\nabla L_i^{\mathrm{InfoNCE}}}{1 - p_i^+}

    The arguments are those of :class:`~selfsight.losses.contrastive.PairLoss`. Write NT-Xent down beside it, since this
    value tells nothing.

    >>> z = torch.randn(4, 16)
    >>> flat_nce(z, z, temperature=0.1)
    tensor(1.)
    """
    pairs = paired(z1, z2, temperature=temperature, all1=all1, all2=all2, offset=offset)
    v = pairs.negatives() - pairs.positive
    return (v - v.detach()).exp().mean()
