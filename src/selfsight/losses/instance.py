"""Instance classification: every image is a class, and a feature picks its own image's vector."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.precision import full


def instance_softmax(
    z: Float[Tensor, "b d"], vectors: Float[Tensor, "n d"], target: Int[Tensor, " b"], *, temperature: float
) -> Float[Tensor, ""]:
    r"""The cross-entropy of picking row ``target`` among ``vectors``.

    .. math:: L = \frac1b \sum_i -\log \frac{e^{v_{y_i}^\top z_i / \tau}}{\sum_{j=1}^n e^{v_j^\top z_i / \tau}}

    Nothing is normalised here: InstDisc's bank starts near unit length and gets there row by row, PIC divides its
    weights by their norms. The matrix of scores is never held.

    >>> import torch
    >>> instance_softmax(torch.zeros(2, 4), torch.ones(7, 4), torch.tensor([0, 6]), temperature=0.1)  # log 7
    tensor(1.9459)
    """
    anchors = full(z) / temperature
    candidates = full(vectors).to(anchors.dtype)
    positive = (anchors * candidates[target]).sum(dim=1)
    return softplus(log_sum_exp(anchors, candidates, skip=target[:, None]) - positive).mean()
