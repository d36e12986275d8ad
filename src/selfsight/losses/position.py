"""Saying of each patch where in the image it lies."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from selfsight.losses.precision import full


def position_cross_entropy(logits: Float[Tensor, "b n n"]) -> Float[Tensor, ""]:
    r"""MP3's loss: each of ``n`` patches is classified into the ``n`` places, its own being the right one.

    .. math:: L = \frac1{bn} \sum_b \sum_i \Big[-\log \mathrm{softmax}(z_{b,i})_i\Big]

    ``logits[:, i]`` belong to the patch in place ``i`` (row-major). Places may be given twice: no permutation is
    sought.

    >>> round(float(position_cross_entropy(torch.zeros(2, 196, 196))), 3)  # log 196
    5.278
    """
    places = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))
    return cross_entropy(full(logits).flatten(0, 1), places)
