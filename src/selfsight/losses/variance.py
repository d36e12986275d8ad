"""VICReg's three terms: views agree, every feature varies over the batch, and no two features vary together.

The first is a mean over pairs, the others are statistics of one view's whole batch: over several processes, pass them
the gathered rows.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu

from selfsight.losses.precision import full, no_autocast


def invariance(z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    r"""The mean squared difference of two views, :math:`\frac1{bd} \sum_i \lVert z_i - z'_i \rVert^2`.

    The code and the paper's algorithm divide by the width too, the paper's equation 5 does not.

    >>> import torch
    >>> invariance(torch.ones(2, 4), torch.zeros(2, 4))
    tensor(1.)
    """
    return (full(z1) - full(z2)).square().mean()


def variance(z: Float[Tensor, "n d"], *, target: float = 1.0, eps: float = 1e-4) -> Float[Tensor, ""]:
    r"""What each feature's standard deviation over the batch lacks to ``target`` (Bardes et al., 2022, eq. 1).

    .. math:: v(Z) = \frac1d \sum_{j=1}^{d} \max\big(0, \gamma - \sqrt{\mathrm{Var}(z^j) + \epsilon}\big)

    The variance is unbiased. ``eps`` keeps the gradient finite at a variance of zero. Defaults: the paper's.

    >>> import torch
    >>> variance(torch.zeros(8, 4))  # collapsed: 1 - sqrt(1e-4)
    tensor(0.9900)
    """
    return relu(target - (full(z).var(dim=0) + eps).sqrt()).mean()


def covariance(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""The squared covariances between different features (Bardes et al., 2022, eq. 4).

    .. math:: c(Z) = \frac1d \sum_{i \ne j} C_{ij}^2, \qquad
              C = \frac1{n-1} \sum_k (z_k - \bar z)(z_k - \bar z)^\top

    Where there are more features than rows, the sum of all squares is taken of the smaller matrix of the rows' inner
    products, which has the same: 2048 rows of 8192 features cost a quarter of the products and a sixteenth of the
    memory. What is subtracted then is a small part: features of fewer rows cannot all be uncorrelated.

    >>> import torch
    >>> covariance(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    tensor(0.)
    """
    n, d = z.shape
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 rows, got {n}; use a larger batch")
    z = full(z) - full(z).mean(dim=0)
    with no_autocast(z):
        if n < d:
            every = (z @ z.T).square().sum()
            own = z.square().sum(dim=0).square().sum()
            return (every - own) / ((n - 1) ** 2 * d)
        c = z.T @ z / (n - 1)
    return c.square().fill_diagonal_(0).sum() / d
