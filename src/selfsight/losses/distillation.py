"""Self-distillation: a student's views predict the centred and sharpened output of a teacher."""

import torch
from jaxtyping import Bool, Float
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


def masked_distillation(
    student: Float[Tensor, "m k"],
    teacher: Float[Tensor, "m k"],
    masked: Bool[Tensor, "c n"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    r"""iBOT's loss of patches: the cross-entropy of each hidden patch against the teacher, who sees it, in its place.

    .. math:: L = \frac1c \sum_c \frac{1}{\max(1, |M_c|)} \sum_{i \in M_c} \Big[- \sum_k
              P_t(i)_k \log \mathrm{softmax}(s_i / \tau_s)_k \Big]

    ``masked`` says which of ``n`` patches of each of ``c`` crops are hidden. ``student``, logits, and ``teacher``,
    probabilities, are of these patches alone, crop after crop (``x[masked]``). A crop without hidden patches costs
    nothing and counts in the mean. Default: iBOT's student temperature 0.1.

    >>> masked = torch.tensor([[True, False, True], [False, False, False]])
    >>> teacher = torch.rand(2, 16).softmax(dim=-1)
    >>> round(float(masked_distillation(torch.zeros(2, 16), teacher, masked)), 4)  # half of log 16
    1.3863
    """
    log_p = (full(student) / temperature).log_softmax(dim=-1)
    shares = masked.to(log_p.dtype) / masked.sum(dim=1, keepdim=True).clamp_min(1)
    weight = shares[masked]
    return -(weight * (teacher.to(log_p.dtype) * log_p).sum(dim=-1)).sum() / len(masked)
