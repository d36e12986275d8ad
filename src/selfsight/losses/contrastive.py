r"""Contrastive losses: an anchor picks its positive out of many candidates.

All share one form. With :math:`s_i^+` the score of anchor ``i`` and its positive and :math:`\ell_i` the log of the
summed exponentials of its negatives' scores,

.. math:: L = \frac1b \sum_i -\log\frac{e^{s_i^+}}{e^{s_i^+} + e^{\ell_i}}
    = \frac1b \sum_i \mathrm{softplus}(\ell_i - s_i^+),

whose gradient stays exact when the positive's share comes near 1. Scores are cosines divided by the temperature.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.precision import unit

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


@runtime_checkable
class QueueLoss(Protocol):
    """A loss of queries, their keys, and ``negatives`` that all queries share; ``all_q`` are those of all processes."""

    def __call__(
        self,
        q: Float[Tensor, "b d"],
        k: Float[Tensor, "b d"],
        *,
        negatives: Float[Tensor, "n d"],
        all_q: Float[Tensor, "a d"] | None = None,
    ) -> Float[Tensor, ""]: ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two views as anchors, each with one positive and all other images' embeddings as negatives.

    ``anchors`` and ``candidates`` are normalised and divided by the root of the temperature, so that their inner
    products are scores; one and the same tensor where there is one process. ``own`` are each anchor's two candidates
    that are no negatives, itself and its positive. ``positive`` is the score of the latter.
    """

    anchors: Float[Tensor, "a d"]
    candidates: Float[Tensor, "m d"]
    own: Int[Tensor, "a 2"]
    positive: Float[Tensor, " a"]

    @property
    def count(self) -> int:
        """The negatives of one anchor."""
        return len(self.candidates) - 2

    def negatives(self, sharpness: float = 1.0) -> Float[Tensor, " a"]:
        """For each anchor the log of the summed exponentials of its negatives' scores times ``sharpness``."""
        if sharpness == 0:
            return torch.full_like(self.positive, math.log(self.count))
        root = sharpness**0.5
        anchors = self.anchors * root
        candidates = anchors if self.candidates is self.anchors else self.candidates * root  # still one tensor
        return log_sum_exp(anchors, candidates, skip=self.own)


def paired(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Pairs:
    """What the losses of two views start from; the arguments are those of :class:`PairLoss`.

    >>> z = torch.eye(3)
    >>> pairs = paired(z, z, temperature=0.5)
    >>> pairs.count, pairs.positive
    (4, tensor([2.0000, 2.0000, 2.0000, 2.0000, 2.0000, 2.0000]))
    """
    all1, all2 = everyone(z1, z2, all1, all2)
    b, n = len(z1), len(all1)
    if not 0 <= offset <= n - b:
        raise ValueError(f"the loss got offset {offset} for {b} rows among {n}; it says where they stand in all1")
    if n == 1:
        raise ValueError("the loss got a batch of one image, which has no negatives; give at least two")
    root = temperature**0.5  # on both sides of the product, so that it stays symmetric
    anchors = candidates = unit(torch.cat([z1, z2]), dim=1) / root
    if all1 is not z1 or all2 is not z2:
        candidates = unit(torch.cat([all1, all2]), dim=1) / root
    own = torch.arange(offset, offset + b, device=z1.device)
    own = torch.stack([torch.cat([own, own + n]), torch.cat([own + n, own])], dim=1)
    return Pairs(anchors, candidates, own, (anchors[:b] * anchors[b:]).sum(dim=1).repeat(2))


def everyone(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    all1: Float[Tensor, "n d"] | None,
    all2: Float[Tensor, "n d"] | None,
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
    """The views of all processes: the gathered ones, or the two themselves where there is one process."""
    if (all1 is None) != (all2 is None):
        raise ValueError("the loss got only one of all1 and all2; give both gathered views or neither")
    return (z1, z2) if all1 is None or all2 is None else (all1, all2)


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
    pairs = paired(z1, z2, temperature=temperature, all1=all1, all2=all2, offset=offset)
    return softplus(pairs.negatives() - pairs.positive).mean()


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
    anchors = unit(q, dim=1) / temperature
    keys = unit(k, dim=1)
    if negatives is None:
        if skip is not None:
            raise ValueError("info_nce got skip without negatives; without negatives the other rows of k are used")
        candidates, skip = keys, torch.arange(len(q), device=q.device)[:, None]
    else:
        candidates = unit(negatives, dim=1)
    positive = (anchors * keys).sum(dim=1)
    return softplus(log_sum_exp(anchors, candidates, skip=skip) - positive).mean()
