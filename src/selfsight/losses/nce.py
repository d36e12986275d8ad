r"""Noise-contrastive estimation: an unnormalised model learns to tell a datum from drawn noise.

Gutmann and Hyvärinen, AISTATS 2010 (PMLR 9:297-304). With the model's log-density :math:`s - \log Z` and :math:`K`
noise samples a datum from a known :math:`p_n`, the log-odds that a sample is data are

.. math:: \ell = s - \log Z - \log(K p_n).

The constant is the estimator's business, not a softmax's: leave out :math:`\log K` and it no longer estimates a density
(that is "negative sampling"). Scores are taken as they come, cosines divided by a temperature for instance.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.precision import full


def nce(
    positive: Float[Tensor, " b"],
    negatives: Float[Tensor, "b k"],
    *,
    log_z: float | Float[Tensor, ""],
    log_noise: float,
) -> Float[Tensor, ""]:
    r"""Noise-contrastive estimation of ``b`` data, each with ``k`` noise samples of its own.

    .. math:: L = \frac1b \sum_i \Big[ -\log \sigma(\ell_i^+) - \sum_{k=1}^K \log \sigma(-\ell_{ik}^-) \Big],
        \qquad \ell = s - \log Z - \log(K p_n)

    Negatives are summed, data averaged. ``log_noise`` is :math:`\log p_n`, ``-log n`` for uniform noise over ``n``
    images. Nothing is detached: a learnt ``log_z`` gets its gradient here.

    >>> s = torch.zeros(2), torch.zeros(2, 3)
    >>> nce(*s, log_z=-math.log(3), log_noise=0.0)  # even odds everywhere: (1 + 3) log 2
    tensor(2.7726)
    """
    k = negatives.shape[1]
    if k < 1:
        raise ValueError("noise-contrastive estimation got no noise; give each datum at least 1 negative")
    constant = log_z + (math.log(k) + log_noise)
    data = softplus(constant - full(positive))
    noise = softplus(full(negatives) - constant).sum(dim=1)
    return (data + noise).mean()


@torch.no_grad()
def log_partition(positive: Float[Tensor, " b"], negatives: Float[Tensor, "b k"], *, samples: int) -> Float[Tensor, ""]:
    r"""The estimate of :math:`\log Z` that InstDisc, CMC and CRD take from their first batch.

    .. math:: \hat Z = n \cdot \mathrm{mean}(e^s) \quad \text{over the } b (K + 1) \text{ scores}

    ``samples`` is :math:`n`. With it the mean density of the batch is :math:`1 / n`, that of uniform noise.

    >>> log_partition(torch.zeros(2), torch.zeros(2, 3), samples=10)  # log 10
    tensor(2.3026)
    """
    scores = torch.cat([full(positive)[:, None], full(negatives)], dim=1)
    return scores.flatten().logsumexp(dim=0) + math.log(samples / scores.numel())


def sampled_softmax(
    positive: Float[Tensor, " b"], negatives: Float[Tensor, "b k"], *, skip: Bool[Tensor, "b k"] | None = None
) -> Float[Tensor, ""]:
    r"""The cross-entropy of picking the positive out of itself and its negatives: no constant, no density.

    .. math:: L = \frac1b \sum_i -\log \frac{e^{s_i^+}}{e^{s_i^+} + \sum_{k \notin \mathrm{skip}_i} e^{s_{ik}^-}}

    ``skip`` marks negatives that are left out, since they happen to be the positive itself.

    >>> sampled_softmax(torch.zeros(2), torch.zeros(2, 3))  # log(1 + 3)
    tensor(1.3863)
    """
    scores = full(negatives)
    if skip is not None:
        scores = scores.masked_fill(skip, torch.finfo(scores.dtype).min)  # not -inf, whose log-sum has no gradient
    return softplus(scores.logsumexp(dim=1) - full(positive)).mean()
