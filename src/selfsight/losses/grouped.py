r"""Contrast of groups: a member picks the other members of its group out of all embeddings."""

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.precision import unit


def grouped_contrast(
    z: Float[Tensor, "b v d"],
    *,
    temperature: float,
    base_temperature: float | None = None,
    everyone: Float[Tensor, "n v d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""Supervised contrast (Khosla et al., 2020, eq. 2, :math:`L_{out}`) of groups of equal size.

    Each of the ``b`` groups has ``v`` members. With :math:`P_i` the other members of :math:`i`'s group,

    .. math:: L = -\frac\tau{\tau_b} \operatorname*{mean}_i \frac1{|P_i|} \sum_{p \in P_i}
        \log \frac{\exp(\hat z_i^\top \hat z_p / \tau)}{\sum_{k \ne i} \exp(\hat z_i^\top \hat z_k / \tau)} .

    The factor is 1 without a ``base_temperature`` :math:`\tau_b`. The positives share one denominator, so without it
    the loss is at least :math:`\log(v - 1)`, whatever the embeddings. These need not be normalised. Over several
    processes ``everyone`` is the gathered groups, where this process's begin at ``offset``: the mean of this loss over
    processes is the loss of the joined batch, and so is its gradient. Without it the groups given are all there are.

    >>> grouped_contrast(torch.ones(8, 4, 16), temperature=0.3)  # all alike: log(8 * 4 - 1)
    tensor(3.4340)
    """
    (b, v, _), n = z.shape, len(z if everyone is None else everyone)
    if v < 2:
        raise ValueError(f"grouped_contrast got groups of {v}; a member needs another one to pick")
    if not 0 <= offset <= n - b:
        raise ValueError(f"grouped_contrast got offset {offset} for {b} groups among {n}")
    root = temperature**0.5  # on both sides of the product, so that it stays symmetric
    groups = unit(z, dim=2) / root
    anchors = candidates = groups.flatten(0, 1)
    if everyone is not None:
        candidates = unit(everyone, dim=2).flatten(0, 1) / root
    own = torch.arange(offset * v, (offset + b) * v, device=z.device)[:, None]
    positive = ((groups * groups.sum(dim=1, keepdim=True)).sum(dim=2) - groups.square().sum(dim=2)) / (v - 1)
    loss = (log_sum_exp(anchors, candidates, skip=own) - positive.flatten()).mean()
    return loss if base_temperature is None else loss * (temperature / base_temperature)
