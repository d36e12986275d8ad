"""Similarity of a prediction and a representation, as a loss."""

from jaxtyping import Float
from torch import Tensor

from selfsight.losses.precision import unit


def negative_cosine(p: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    r"""SimSiam's negative cosine similarity (Chen and He, 2021, eq. 1), one direction.

    .. math:: D(p, z) = -\frac1b \sum_i \frac{p_i^\top z_i}{\lVert p_i \rVert \lVert z_i \rVert} \in [-1, 1]

    BYOL's squared distance is ``2 + 2 D``. SimSiam averages both directions and stops the gradient at ``z``: nothing is
    detached here. The gradient with respect to ``p`` shrinks with the length of ``p``.

    >>> import torch
    >>> p = torch.eye(4)
    >>> negative_cosine(p, 3 * p), negative_cosine(p, -p)
    (tensor(-1.), tensor(1.))
    """
    return -(unit(p, dim=1) * unit(z, dim=1)).sum(dim=1).mean()
