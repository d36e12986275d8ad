"""Self-training: one cross-entropy over labelled images and over those that a teacher has labelled."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from selfsight.losses.precision import full


def joint_cross_entropy(
    logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"], *, ratio: float
) -> Float[Tensor, ""]:
    r"""Labelled and pseudo-labelled images in one sum, divided by the number of labelled ones (Xie et al., 2020).

    .. math:: L = L_{lab} + r L_{unl} = \frac{1 + r}{b} \sum_b \Big[- \sum_k q_{b,k} \log p_{b,k} \Big]

    where of ``b`` images one in :math:`1 + r` has a label. So the loss grows with ``ratio``, by which the paper's
    learning rates go. The targets get no gradient.

    >>> import torch
    >>> joint_cross_entropy(torch.zeros(4, 2), torch.tensor([[0.5, 0.5]] * 4), ratio=3)  # 4 log 2
    tensor(2.7726)
    """
    log_p = full(logits).log_softmax(dim=1)
    return -(1 + ratio) * (targets.detach().to(log_p.dtype) * log_p).sum(dim=1).mean()


def smoothed(labels: Int[Tensor, " b"], classes: int, *, smoothing: float) -> Float[Tensor, "b k"]:
    r"""Label smoothing: :math:`(1 - \epsilon)` on the label, and :math:`\epsilon` shared by all classes alike.

    >>> import torch
    >>> smoothed(torch.tensor([1]), 2, smoothing=0.1)
    tensor([[0.0500, 0.9500]])
    """
    return (1 - smoothing) * one_hot(labels, classes).float() + smoothing / classes


def tempered(probabilities: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    r"""Stored answers softened or sharpened: :math:`q^{1/T}`, renormalised, which is the softmax of logits over T.

    Near 0 it is one class.

    >>> import torch
    >>> tempered(torch.tensor([[0.2, 0.8]]), 0.5)
    tensor([[0.0588, 0.9412]])
    """
    return (full(probabilities).clamp_min(1e-30).log() / temperature).softmax(dim=1)
