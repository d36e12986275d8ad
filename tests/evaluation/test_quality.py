"""Label-free quality: closed forms, published oracles of the fact sheet, and naive versions of each equation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from selfsight.evaluation.quality import alignment, alpha_req, effective_rank, feature_std, uniformity
from selfsight.losses import blockwise


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def rankme(z: np.ndarray, epsilon: float = 1e-7) -> float:
    sigma = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + epsilon
    return float(np.exp(-(p * np.log(p)).sum()))


def test_effective_rank_of_orthonormal_columns_is_their_number() -> None:
    q = torch.linalg.qr(normal(512, 128).double()).Q
    assert effective_rank(q) == pytest.approx(128.006, abs=1e-3)


def test_effective_rank_of_one_direction_is_one() -> None:
    assert effective_rank(normal(512, 1) @ normal(1, 64)) == pytest.approx(1.0002, abs=2e-4)
    assert effective_rank(torch.zeros(16, 8)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (64, 64)])
def test_effective_rank_equals_the_singular_values_own(shape: tuple[int, int]) -> None:
    z = normal(*shape) * torch.logspace(0, -3, shape[1])
    assert effective_rank(z) == pytest.approx(rankme(z.numpy()), rel=1e-4)


def test_effective_rank_is_of_the_features_as_they_are() -> None:
    z = normal(4096, 64)
    plain, moved = effective_rank(z), effective_rank(z + 5)
    assert plain == pytest.approx(63.7, abs=0.3)
    assert moved < 0.6 * plain  # not centred: a common offset takes its share
    assert effective_rank(7 * z @ torch.linalg.qr(normal(64, 64, 1)).Q) == pytest.approx(plain, rel=1e-4)


def test_effective_rank_of_what_is_not_finite_is_nan() -> None:
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))


def test_alignment_is_the_squared_distance_on_the_sphere() -> None:
    x, y = normal(50, 6), normal(50, 6, 1)
    by_hand = np.mean(
        [
            np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
            for a, b in zip(x.numpy(), y.numpy(), strict=True)
        ]
    )
    assert alignment(x, y) == pytest.approx(float(by_hand), rel=1e-5)
    assert alignment(x, -x) == pytest.approx(4.0)
    assert alignment(x, -x, alpha=1.0) == pytest.approx(2.0)
    assert alignment(x, 3 * x) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_uniformity_equals_the_mean_over_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blockwise._SIDE, "cpu", block)
    x = normal(40, 5).double()
    u = x / x.norm(dim=1, keepdim=True)
    pairs = [math.exp(-2 * float((u[i] - u[j]).square().sum())) for i in range(40) for j in range(i + 1, 40)]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-9)


@pytest.mark.parametrize(("d", "expected"), [(2, -1.575), (8, -3.08), (64, -3.875), (128, -3.938)])
def test_uniformity_of_the_even_sphere(d: int, expected: float) -> None:
    assert uniformity(normal(2048, d)) == pytest.approx(expected, abs=0.02)


def test_uniformity_of_collapse_is_zero() -> None:
    assert uniformity(torch.ones(64, 16) * 0.3) == 0.0


@pytest.mark.parametrize(("n", "d"), [(400, 130), (300, 40), (60, 200)])
def test_alpha_req_finds_the_exponent_of_an_exact_power_law(n: int, d: int) -> None:
    k = min(n - 1, d)
    # centred orthonormal columns: the covariance's eigenvalues are exactly the squared factors
    raw = normal(n, k).double()
    left = torch.linalg.qr(raw - raw.mean(0)).Q
    right = torch.linalg.qr(normal(d, k, 1).double()).Q
    x = left @ torch.diag(torch.arange(1, k + 1).double() ** -0.65) @ right.T
    law = alpha_req(3 * x + 1)  # neither scale nor offset matters
    assert law.alpha == pytest.approx(1.3, abs=1e-6)
    assert law.r2 == pytest.approx(1.0, abs=1e-9)


def test_alpha_req_equals_a_weighted_fit_of_the_covariance() -> None:
    x = (normal(500, 120) * torch.logspace(0, -2, 120)).numpy().astype(np.float64)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    rank = np.arange(11, 101)
    slope = np.polyfit(np.log(rank), np.log(values[10:100]), 1, w=np.sqrt(1 / rank))[0]
    assert alpha_req(torch.from_numpy(x)).alpha == pytest.approx(-slope, rel=1e-6)


def test_alpha_req_says_what_it_needs() -> None:
    assert alpha_req(normal(20000, 32)).alpha < 0.15  # white noise is flat
    assert math.isnan(alpha_req(torch.ones(64, 32)).alpha)
    with pytest.raises(ValueError, match="at least 11 samples and 10 widths, got 50 and 4"):
        alpha_req(normal(50, 4))


def test_feature_std_tells_spread_from_collapse() -> None:
    assert feature_std(normal(5000, 64)) == pytest.approx(1 / 8, rel=0.02)
    assert feature_std(normal(1, 64).repeat(100, 1)) < 1e-6
    x = normal(30, 4).numpy().astype(np.float64)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert feature_std(torch.from_numpy(x)) == pytest.approx(float(u.std(axis=0).mean()), rel=1e-9)


@pytest.mark.parametrize("function", [feature_std, uniformity])
def test_one_sample_has_no_spread(function: Callable[[torch.Tensor], float]) -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        function(torch.ones(1, 4))
