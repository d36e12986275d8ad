"""Self-distillation: a student's views predict the centred and sharpened output of a teacher."""

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.precision import full


@torch.no_grad()
def teacher_probabilities(
    logits: Float[Tensor, "u b k"], centre: Float[Tensor, " k"], *, temperature: float
) -> Float[Tensor, "u b k"]:
    r"""What the teacher says, centred against one class winning all and sharpened against saying nothing.

    .. math:: P_t(u) = \mathrm{softmax}((t_u - c) / \tau_t)

    Without gradients, in float32 or wider. DINO: temperature 0.04, or 0.04 to 0.07 over the first 30 epochs.

    >>> teacher_probabilities(torch.tensor([[[1.0, 1.0]]]), torch.tensor([0.0, 0.0]), temperature=0.04)
    tensor([[[0.5000, 0.5000]]])
    """
    logits = full(logits)
    return ((logits - centre.to(logits.dtype)) / temperature).softmax(dim=-1)


def self_distillation(
    student: Float[Tensor, "v b k"], teacher: Float[Tensor, "u b k"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    r"""DINO's loss: the cross-entropy of each of the student's views against each other view of the teacher.

    .. math:: L = \frac1{U(V - 1)} \sum_{u=1}^{U} \sum_{v \ne u} \frac1b \sum_b \Big[- \sum_k
              P_t(u)_{b,k} \log \mathrm{softmax}(s_v / \tau_s)_{b,k} \Big]

    ``student`` holds logits of all ``v`` views, ``teacher`` probabilities of the first ``u`` of them. With two, these
    are the paper's ``2v - 2`` terms. Default: DINO's student temperature 0.1.

    >>> teacher = torch.rand(2, 3, 16).softmax(dim=-1)
    >>> round(float(self_distillation(torch.zeros(10, 3, 16), teacher)), 4)  # log 16, whatever the teacher says
    2.7726
    """
    v, u = len(student), len(teacher)
    if not 1 <= u <= v or v < 2:
        raise ValueError(f"self-distillation needs 2 views and a teacher on some of them, got {v} and {u}")
    log_p = (full(student) / temperature).log_softmax(dim=-1)
    loss = log_p.new_zeros(())
    for seen, p in enumerate(teacher.to(log_p.dtype)):
        for other in range(v):
            if other != seen:
                loss = loss - (p * log_p[other]).sum(dim=-1).mean()
    return loss / (u * (v - 1))
