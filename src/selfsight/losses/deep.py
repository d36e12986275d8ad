"""Deep supervision of masked autoencoders: an error for each supervised block, and easier targets for shallow ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.losses.precision import full
from selfsight.losses.reconstruction import masked_mse


def hybrid_target(
    target: Float[Tensor, "b n p"], guess: Float[Tensor, "b n p"], share: float
) -> Float[Tensor, "b n p"]:
    r"""DeepMIM's hybrid target :math:`\alpha x + (1 - \alpha) \hat x`, from a trained model's reconstruction.

    ``share`` is :math:`\alpha`: 1 gives ``target`` and 0 gives ``guess``, bit by bit.

    >>> hybrid_target(torch.tensor([[[4.0]]]), torch.tensor([[[1.0]]]), 1 / 3)
    tensor([[[2.]]])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a target's share in a hybrid is {share:g}; it lies from 0 to 1")
    return share * full(target) + (1 - share) * full(guess)


def deep_masked_mse(
    predictions: Sequence[Float[Tensor, "b n p"]],
    targets: Sequence[Float[Tensor, "b n p"]],
    masked: Int[Tensor, "b m"],
) -> Float[Tensor, " levels"]:
    r"""The error of each level on the patches that were hidden; DeepMIM's loss is their sum, all with weight one.

    .. math:: L_l = \frac1{bm} \sum_b \sum_{i \in \text{masked}_b} \frac1p \lVert \hat x^l_{b,i} - t^l_{b,i} \rVert^2

    >>> x = torch.zeros(1, 2, 3)
    >>> deep_masked_mse([x + 1, x + 2], [x, x], torch.tensor([[1]]))
    tensor([1., 4.])
    """
    pairs = zip(predictions, targets, strict=True)
    return torch.stack([masked_mse(prediction, target, masked) for prediction, target in pairs])
