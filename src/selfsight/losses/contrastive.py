r"""Contrastive losses: an anchor picks its positive out of many candidates.

All share one form. With :math:`s_i^+` the score of anchor ``i`` and its positive and :math:`\ell_i` the log of the
summed exponentials of its negatives' scores,

.. math:: L = \frac1b \sum_i -\log\frac{e^{s_i^+}}{e^{s_i^+} + e^{\ell_i}}
    = \frac1b \sum_i \mathrm{softplus}(\ell_i - s_i^+),

whose gradient stays exact when the positive's share comes near 1. Scores are cosines divided by the temperature.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, softplus

from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.precision import full

Temperature = float | Float[Tensor, ""]


@runtime_checkable
class PairLoss(Protocol):
    """A loss of two views: row ``i`` of ``z1`` and row ``i`` of ``z2`` show the same image.

    Over several processes ``all1`` and ``all2`` are the gathered views, and this process's rows start at ``offset``;
    without them the two views are all there is.
    """

    def __call__(
        self,
        z1: Float[Tensor, "b d"],
        z2: Float[Tensor, "b d"],
        *,
        all1: Float[Tensor, "n d"] | None = None,
        all2: Float[Tensor, "n d"] | None = None,
        offset: int = 0,
    ) -> Float[Tensor, ""]: ...


def nt_xent(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""SimCLR's normalised, temperature-scaled cross-entropy (Chen et al., 2020, eq. 1).

    .. math:: L = \frac1{2b} \sum_{i=1}^{2b} \Big[-\frac{\hat z_i^\top \hat z_{j(i)}}{\tau}
        + \log \sum_{k \ne i} e^{\hat z_i^\top \hat z_k / \tau}\Big]

    The mean over the ``2b`` anchors of this process, each against all ``2n - 1`` others; the official code returns
    twice this. Embeddings need not be normalised. ``all1`` and ``all2`` (gathered with gradients) and ``offset`` are as
    in :class:`PairLoss`: the mean of this loss over processes is the loss of the joined batch, and so is its gradient.

    >>> z = torch.ones(4, 16)
    >>> nt_xent(z, z, temperature=0.1)  # all alike: log(2 * 4 - 1)
    tensor(1.9459)
    """
    if (all1 is None) != (all2 is None):
        raise ValueError("nt_xent got only one of all1 and all2; give both gathered views or neither")
    if all1 is None or all2 is None:
        all1, all2 = z1, z2
    b, n = len(z1), len(all1)
    if not 0 <= offset <= n - b:
        raise ValueError(f"nt_xent got offset {offset} for {b} rows among {n}; it is where they stand in all1 and all2")
    root = temperature**0.5  # on both sides of the product, so that it stays symmetric
    anchors = candidates = normalize(full(torch.cat([z1, z2])), dim=1) / root
    if all1 is not z1 or all2 is not z2:
        candidates = normalize(full(torch.cat([all1, all2])), dim=1) / root
    own = torch.arange(offset, offset + b, device=z1.device)
    own = torch.stack([torch.cat([own, own + n]), torch.cat([own + n, own])], dim=1)  # itself, its positive
    negatives = log_sum_exp(anchors, candidates, skip=own)
    positive = (anchors[:b] * anchors[b:]).sum(dim=1).repeat(2)
    return softplus(negatives - positive).mean()


def info_nce(
    q: Float[Tensor, "b d"],
    k: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    negatives: Float[Tensor, "n d"] | None = None,
    skip: Int[Tensor, "b s"] | None = None,
) -> Float[Tensor, ""]:
    r"""InfoNCE (van den Oord et al., 2018) of queries, their keys, and negatives that all queries share.

    .. math:: L = \frac1b \sum_i -\log \frac{e^{\hat q_i^\top \hat k_i / \tau}}
        {e^{\hat q_i^\top \hat k_i / \tau} + \sum_{j \notin \mathrm{skip}_i} e^{\hat q_i^\top \hat n_j / \tau}}

    Without ``negatives`` each query's are the other rows of ``k``: the cross-entropy of picking its own. A queue is
    passed as ``negatives``; keys gathered from all processes too, with each query's own row there as ``skip``.
    Embeddings need not be normalised. Nothing is detached here.

    >>> q, queue = torch.ones(2, 16), torch.ones(7, 16)
    >>> info_nce(q, q, temperature=0.07, negatives=queue)  # all alike: log(1 + 7)
    tensor(2.0794)
    """
    anchors = normalize(full(q), dim=1) / temperature
    keys = normalize(full(k), dim=1)
    if negatives is None:
        if skip is not None:
            raise ValueError("info_nce got skip without negatives; without negatives the other rows of k are used")
        candidates, skip = keys, torch.arange(len(q), device=q.device)[:, None]
    else:
        candidates = normalize(full(negatives), dim=1)
    positive = (anchors * keys).sum(dim=1)
    return softplus(log_sum_exp(anchors, candidates, skip=skip) - positive).mean()
