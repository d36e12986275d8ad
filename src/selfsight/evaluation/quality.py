"""Label-free quality of features: pure functions of tensors, computed in float64 where the spectrum matters.

Sources: RankMe (Garrido et al., 2023, arXiv 2210.02885), alignment and uniformity (Wang and Isola, 2020, arXiv
2005.10242), alpha-ReQ (Agrawal et al., NeurIPS 2022), the standard deviation of normalised features (Chen and He, 2021,
arXiv 2011.10566, figure 2). None of them replaces a score on labels: each compares runs of one method with one another.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from selfsight.losses import hypersphere


class PowerLaw(NamedTuple):
    """The exponent of a spectrum's decay, and the share of its variance that the straight line explains."""

    alpha: float
    r2: float


def _precise(x: Tensor) -> Tensor:
    """Half types upcast to float32; float32 and float64 kept."""
    return x if x.dtype == torch.float64 else x.float()


def _squared_singular_values(x: Tensor) -> Tensor:
    """In descending order, through the smaller Gram matrix: in float64 what it loses lies below 1e-8 of the largest."""
    x = x.double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    return torch.linalg.eigvalsh((gram + gram.T) / 2).clamp_min(0).flip(0)


def effective_rank(z: Float[Tensor, "n d"], *, epsilon: float = 1e-7) -> float:
    r"""RankMe: the exponential of the entropy of the singular values.

    ``p_k = sigma_k / sum(sigma) + epsilon``, ``exp(-sum_k p_k log p_k)`` over the ``min(n, d)`` singular values of
    ``z`` itself: neither centred nor normalised, so a common offset lowers it. Lies between 1 (collapse to a line) and
    d, and needs many more samples than widths (the paper: 25,600). ``epsilon``: the paper's equation (1). NaN where
    ``z`` is not finite.

    >>> round(effective_rank(torch.eye(64)), 2)
    64.0
    """
    if not z.isfinite().all():
        return math.nan
    sigma = _squared_singular_values(z).sqrt()
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + epsilon
    return (-(p * p.log()).sum()).exp().item()


@torch.no_grad()
def alignment(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], *, alpha: float = 2.0) -> float:
    r"""How far the two views of one image lie apart on the unit sphere: ``mean_i |x_i - y_i|^alpha``. Lower is better.

    Rows are normalised here. ``alpha=2``: the paper's choice. 0 for equal views, 2 for unrelated ones.

    >>> alignment(torch.eye(4), torch.eye(4))
    0.0
    """
    return hypersphere.alignment(_precise(x), _precise(y), alpha=alpha).item()


@torch.no_grad()
def uniformity(x: Float[Tensor, "n d"], *, t: float = 2.0) -> float:
    r"""How evenly features cover the unit sphere: ``log mean_{i<j} exp(-t |x_i - x_j|^2)``. Lower is better.

    Rows are normalised here. ``t=2``: the paper's choice; then 0 means collapse and -4 is the limit in high dimension.
    Computed in blocks: memory does not grow with ``n * n``.

    >>> uniformity(torch.ones(8, 3))
    0.0
    """
    value = hypersphere.uniformity(_precise(x), t=t).item()
    return 0.0 if abs(value) < 2e-6 else value  # float32's rounding of the logarithm where all rows are equal


def alpha_req(x: Float[Tensor, "n d"]) -> PowerLaw:
    r"""alpha-ReQ: ``alpha`` of the power law ``lambda_i ~ i^-alpha`` that the features' covariance follows.

    Eigenvalues of the centred covariance in descending order; least squares of their logarithm on that of the rank with
    weights 1/rank, over ranks 11 to 100 as in the authors' code; where fewer than 100 are there (samples - 1, widths),
    over ranks 3 to half of them, which is our choice. alpha near 1 is good, far above it collapse, below it too flat.

    >>> basis = torch.linalg.qr(torch.randn(512, 129, generator=torch.Generator().manual_seed(0)).double()).Q
    >>> round(alpha_req(basis @ torch.diag(torch.arange(1, 130).double() ** -0.5)).alpha, 1)
    1.0
    """
    usable = min(len(x) - 1, x.shape[1])
    first, last = (11, 100) if usable >= 100 else (3, usable // 2)
    if last - first < 2:
        raise ValueError(f"alpha-ReQ needs at least 11 samples and 10 widths, got {len(x)} and {x.shape[1]}")
    if not x.isfinite().all():
        return PowerLaw(math.nan, math.nan)
    x = x.double()
    values = _squared_singular_values(x - x.mean(0))
    if values[0] <= 0:
        return PowerLaw(math.nan, math.nan)  # all samples are equal: there is no spectrum
    rank = torch.arange(first, last + 1, dtype=torch.float64, device=x.device)
    logs = values[first - 1 : last].clamp_min(values[0] * 1e-16).log()
    weights = (1 / rank) / (1 / rank).sum()
    u, v = rank.log() - (weights * rank.log()).sum(), logs - (weights * logs).sum()
    slope = (weights * u * v).sum() / (weights * u * u).sum()
    spread = (weights * v * v).sum()
    r2 = 1 - (weights * (v - slope * u) ** 2).sum() / spread if spread > 0 else torch.ones(())
    return PowerLaw(-slope.item(), r2.item())


def feature_std(x: Float[Tensor, "n d"]) -> float:
    r"""The mean over channels of the standard deviation of normalised features (SimSiam, figure 2).

    About ``1 / sqrt(d)`` where features point everywhere alike, 0 at collapse. Rows are normalised here.

    >>> feature_std(torch.ones(8, 3))
    0.0
    """
    if len(x) < 2:
        raise ValueError(f"feature_std needs at least 2 samples, got {len(x)}")
    return normalize(_precise(x), dim=1).std(0, correction=0).mean().item()
