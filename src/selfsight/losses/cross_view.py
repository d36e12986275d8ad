"""InfoNCE across two views: each anchor picks its own image among the other view's candidates, and among no others."""

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.contrastive import Temperature, info_nce


def cross_view_info_nce(
    anchors: Float[Tensor, "b d"],
    candidates: Float[Tensor, "b d"],
    *,
    temperature: Temperature,
    all_candidates: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""The cross-entropy of picking one's own row: MoCo v3's and NNCLR's loss in one direction.

    .. math:: L = \frac1b \sum_i \Big[-\frac{\hat a_i^\top \hat c_i}{\tau}
        + \log \sum_{j=1}^{n} e^{\hat a_i^\top \hat c_j / \tau}\Big]

    Unlike in SimCLR's loss the anchors' own view has no negatives. Row ``i`` of both shows the same image; embeddings
    need not be normalised. Over several processes ``all_candidates`` are the gathered ones (with gradients where the
    candidates have any), of which this process's begin at ``offset``: the mean of this loss over processes is then the
    loss of the joined batch. Nothing is detached here.

    >>> z = torch.ones(8, 16)
    >>> cross_view_info_nce(z, z, temperature=0.2)  # all alike: log 8
    tensor(2.0794)
    """
    if all_candidates is None:
        all_candidates = candidates
    b, n = len(anchors), len(all_candidates)
    if not 0 <= offset <= n - b:
        raise ValueError(f"cross_view_info_nce got offset {offset} for {b} rows among {n}; it is where they begin")
    own = torch.arange(offset, offset + b, device=anchors.device)[:, None]
    return info_nce(anchors, candidates, temperature=temperature, negatives=all_candidates, skip=own)
