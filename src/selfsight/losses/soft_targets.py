"""Knowledge distillation: a student answers with the probabilities of a teacher, not with one class."""

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.precision import full


def soft_cross_entropy(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], *, temperature: float = 1.0
) -> Float[Tensor, ""]:
    r"""The cross-entropy of a student's logits ``s`` against a teacher's ``t``, both softened (Hinton et al., 2015).

    .. math:: L = \frac{\tau^2}{b} \sum_b \Big[- \sum_k \mathrm{softmax}(t / \tau)_{b,k}
              \log \mathrm{softmax}(s / \tau)_{b,k} \Big]

    :math:`\tau^2` keeps the gradient's size when the temperature changes. The teacher gets no gradient. Default:
    SimCLR v2's notebook (google-research/simclr 383d414).

    >>> soft_cross_entropy(torch.zeros(2, 4), torch.randn(2, 4))  # log 4, whatever the teacher says
    tensor(1.3863)
    """
    p = (full(teacher.detach()) / temperature).softmax(dim=1)
    log_p = (full(student) / temperature).log_softmax(dim=1)
    return temperature**2 * -(p.to(log_p.dtype) * log_p).sum(dim=1).mean()


def known_cross_entropy(logits: Float[Tensor, "b k"], labels: Tensor, known: Float[Tensor, ""]) -> Float[Tensor, ""]:
    r"""The cross-entropy of the rows whose label is 0 or more, summed and divided by ``known``; zero without any.

    ``known`` is how many there are: over several processes the mean of each one's count, so that the mean of this loss
    over the processes is that of the joined batch.
    """
    asked = labels >= 0
    log_p = full(logits).log_softmax(dim=1)
    picked = log_p.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    return -torch.where(asked, picked, torch.zeros_like(picked)).sum() / known.clamp_min(1e-6)
