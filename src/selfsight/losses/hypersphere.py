r"""Alignment and uniformity: what contrastive losses do on the unit sphere, as two losses and as two metrics.

Views of one image should lie near each other, and all images evenly on the sphere (Wang and Isola, 2020, arXiv
2005.10242). Rows are normalised here.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch types vector_norm loosely

import math

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.contrastive import everyone
from selfsight.losses.precision import unit


def alignment(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], *, alpha: float = 2.0) -> Float[Tensor, ""]:
    r"""How far two views of one image lie apart: :math:`\frac1n \sum_i \lVert x_i - y_i \rVert^\alpha`.

    ``alpha`` is 2 in the paper's experiments; below 1 the gradient at equal views is infinite.

    >>> x = torch.eye(3)
    >>> alignment(x, -x)
    tensor(4.)
    """
    distance = torch.linalg.vector_norm(unit(x, dim=1) - unit(y, dim=1), dim=1)
    return distance.pow(alpha).mean()


def uniformity(x: Float[Tensor, "n d"], *, t: float = 2.0) -> Float[Tensor, ""]:
    r"""How evenly rows cover the sphere: :math:`\log \frac2{n(n-1)} \sum_{i<j} e^{-t \lVert x_i - x_j \rVert^2}`.

    0 where all are equal; at ``t = 2``, the paper's choice, -4 is the limit in high dimension. Not a mean over rows:
    over several processes give the rows of all.

    >>> round(float(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=2)), 4)
    -8.0
    """
    n = len(x)
    if n < 2:
        raise ValueError(f"uniformity needs at least 2 samples, got {n}")
    x = unit(x, dim=1) * (2 * t) ** 0.5  # |a - b|^2 = 2 - 2ab
    each = log_sum_exp(x, x, skip=torch.arange(n, device=x.device)[:, None])
    return each.logsumexp(dim=0) - (2 * t + math.log(n * (n - 1)))


def align_uniform(
    z1: Float[Tensor, "b d"],
    z2: Float[Tensor, "b d"],
    *,
    align: float = 1.0,
    uniform: float = 1.0,
    alpha: float = 2.0,
    t: float = 2.0,
    all1: Float[Tensor, "n d"] | None = None,
    all2: Float[Tensor, "n d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""Alignment of the two views and uniformity within each, as a loss (Wang and Isola, 2020).

    .. math:: L = \lambda_{al} L_{al}(z_1, z_2; \alpha) +
        \lambda_{un} \tfrac12 \big(L_{un}(z_1; t) + L_{un}(z_2; t)\big)

    ``align`` and ``uniform`` are the two weights. The arguments of :class:`~selfsight.losses.contrastive.PairLoss`;
    every process computes the uniformity of all rows, since the log of a sum does not split.

    >>> z = torch.ones(4, 16)
    >>> bool(align_uniform(z, z).abs() < 1e-5)
    True
    """
    whole1, whole2 = everyone(z1, z2, all1, all2)
    spread = (uniformity(whole1, t=t) + uniformity(whole2, t=t)) / 2
    return align * alignment(z1, z2, alpha=alpha) + uniform * spread


def align_uniform_with_queue(
    q: Float[Tensor, "b d"],
    k: Float[Tensor, "b d"],
    *,
    negatives: Float[Tensor, "n d"],
    align: float = 3.0,
    uniform: float = 1.0,
    alpha: float = 2.0,
    t: float = 3.0,
    all_q: Float[Tensor, "a d"] | None = None,
) -> Float[Tensor, ""]:
    r"""Alignment of queries and keys, and uniformity of queries against a queue and one another (appendix, eq. 18).

    .. math:: L = \lambda_{al} L_{al}(q, k; \alpha) + \lambda_{un} \log \frac1{bn + b(b-1)/2} \Big[
        \sum_{i,j} e^{-t \lVert q_i - n_j \rVert^2} + \sum_{i<j} e^{-t \lVert q_i - q_j \rVert^2} \Big]

    ``all_q`` are the queries of all processes (gathered with gradients), without it ``q`` are all there are. Defaults:
    the ImageNet variant's (SsnL/moco).

    >>> q = torch.ones(4, 16)
    >>> bool(align_uniform_with_queue(q, q, negatives=torch.ones(7, 16)).abs() < 1e-5)
    True
    """
    whole = q if all_q is None else all_q
    b, n = len(whole), len(negatives)
    root = (2 * t) ** 0.5
    x, queue = unit(whole, dim=1) * root, unit(negatives, dim=1) * root
    each = [log_sum_exp(x, queue).logsumexp(dim=0)]
    if b > 1:
        within = log_sum_exp(x, x, skip=torch.arange(b, device=x.device)[:, None])
        each.append(within.logsumexp(dim=0) - math.log(2))  # every pair was met from both sides
    spread = torch.stack(each).logsumexp(dim=0) - (2 * t + math.log(b * n + b * (b - 1) / 2))
    return align * alignment(q, k, alpha=alpha) + uniform * spread
