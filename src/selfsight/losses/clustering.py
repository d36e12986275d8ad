"""Clustering losses: balanced soft assignments by Sinkhorn-Knopp, and predicting one view's assignment from another."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.precision import full


def _alone(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "n k"],
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    gather: Callable[[Tensor], Tensor] = _alone,
) -> Float[Tensor, "n k"]:
    r"""Soft assignments of ``n`` samples to ``k`` prototypes, balanced over prototypes, without gradients.

    With :math:`Q = \exp(\text{scores} / \varepsilon)`, each iteration divides each prototype's mass by its sum over all
    samples, then each sample's mass by its sum over prototypes. It ends on samples: every row sums to exactly 1, while
    prototypes get only nearly equal mass. The published factors :math:`1/K` and :math:`1/B` cancel and are left out.

    Everything happens in the log domain, so no ``epsilon`` overflows. ``gather`` stacks the rows of all processes
    (``distributed.gather``); each process passes its own samples and the prototypes' sums run over all of them.
    Defaults: SwAV, ``main_swav.py`` (epsilon 0.05, 3 iterations).

    >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    if iterations < 1:
        raise ValueError(f"sinkhorn needs at least 1 iteration, got {iterations}")
    log_q = full(scores) / epsilon
    for _ in range(iterations):
        log_q = log_q - gather(log_q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


def swapped_prediction(
    scores: Float[Tensor, "v b k"], assignments: Float[Tensor, "a b k"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    r"""Every crop predicts the assignment of every assigned crop but itself.

    .. math:: L = \frac1A \sum_{s=1}^{A} \frac1{V-1} \sum_{v \ne s} \Big[-\frac1b \sum_b \sum_k
              q_{s,b,k} \log \mathrm{softmax}_k(\text{scores}_{v,b} / \tau)\Big]

    The first ``a`` of the ``v`` crops are those that were assigned. Default: SwAV's temperature 0.1.

    >>> q = torch.full((2, 4, 8), 1 / 8)
    >>> round(float(swapped_prediction(torch.zeros(6, 4, 8), q)), 4)  # log 8
    2.0794
    """
    v, a = len(scores), len(assignments)
    if not 1 <= a <= v or v < 2:
        raise ValueError(f"swapped prediction needs 2 crops and some of them assigned, got {v} crops, {a} assigned")
    log_p = (full(scores) / temperature).log_softmax(dim=-1)
    loss = log_p.new_zeros(())
    for s, q in enumerate(assignments.to(log_p.dtype)):
        for other in range(v):
            if other != s:
                loss = loss - (q * log_p[other]).sum(dim=-1).mean()
    return loss / (a * (v - 1))
