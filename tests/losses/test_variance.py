"""VICReg's terms: slow oracles from the equations, closed forms, invariances, and the relation to Barlow Twins."""

import pytest
import torch
from torch import Tensor

from selfsight.losses.redundancy import barlow_twins, cross_correlation
from selfsight.losses.variance import covariance, invariance, variance


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rows(n: int, d: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, requires_grad=True)


def whitened(n: int, d: int) -> Tensor:
    """Features with no mean and no correlation, and exactly unit variance (unbiased)."""
    x = torch.randn(n, d, dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0))[0] * (n - 1) ** 0.5


def slow_invariance(z1: Tensor, z2: Tensor) -> Tensor:
    n, d = z1.shape
    return sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)


def slow_covariances(z: Tensor) -> list[list[Tensor]]:
    n, d = z.shape
    means = [sum(z[k, j] for k in range(n)) / n for j in range(d)]
    return [
        [sum((z[k, i] - means[i]) * (z[k, j] - means[j]) for k in range(n)) / (n - 1) for j in range(d)]
        for i in range(d)
    ]


def slow_variance(z: Tensor) -> Tensor:
    c, d = slow_covariances(z), z.shape[1]
    return sum((1 - (c[j][j] + 1e-4).sqrt()).clamp_min(0) for j in range(d)) / d


def slow_covariance(z: Tensor) -> Tensor:
    c, d = slow_covariances(z), z.shape[1]
    return sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d


def equal(mine: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    for a, b in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_invariance_is_the_equation() -> None:
    z1, z2 = rows(5, 3), rows(5, 3)
    equal(invariance(z1, z2), slow_invariance(z1, z2), [z1, z2])
    assert torch.autograd.gradcheck(invariance, (z1, z2))


def test_variance_is_the_equation() -> None:
    z = rows(6, 4)
    factors = torch.tensor([0.3, 0.5, 3.0, 0.1])  # the third varies enough
    equal(variance(factors * z), slow_variance(factors * z), [z])
    assert torch.autograd.gradcheck(variance, ((0.5 * z).detach().requires_grad_(),))


@pytest.mark.parametrize(("n", "d"), [(8, 3), (4, 4), (3, 6), (2, 5)])
def test_covariance_is_the_equation_by_either_matrix(n: int, d: int) -> None:
    z = rows(n, d)
    equal(covariance(z), slow_covariance(z), [z])
    assert torch.autograd.gradcheck(covariance, (z,))


def test_unit_variance_costs_nothing_and_pulls_no_more() -> None:
    z = whitened(64, 8).requires_grad_()
    loss = variance(z)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros_like(z))
    assert variance(3 * z).item() == 0  # a hinge: more variance is no loss
    assert variance(0.5 * z).item() == pytest.approx(0.5, abs=2e-4)


def test_collapse_costs_nearly_one_and_has_a_finite_gradient() -> None:
    z = torch.ones(8, 4, requires_grad=True)
    loss = variance(z)
    assert loss.item() == pytest.approx(0.99)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


def test_whitened_features_do_not_vary_together_and_copies_do() -> None:
    z = whitened(64, 8)
    assert covariance(z).item() == pytest.approx(0, abs=1e-20)
    assert covariance(torch.cat([z, z], dim=1)).item() == pytest.approx(1)  # each of 16 has one twin: 16 * 1 / 16


@pytest.mark.parametrize(("n", "d"), [(32, 5), (5, 32)])
def test_covariances_of_standardised_features_are_barlow_twins_off_diagonal(n: int, d: int) -> None:
    z = torch.randn(n, d, dtype=torch.float64)
    z = (z - z.mean(dim=0)) / z.var(dim=0, correction=0).sqrt()
    off = barlow_twins(cross_correlation(z, z), weight=1.0)  # its diagonal is one and costs nothing
    assert off > 0.1
    torch.testing.assert_close(covariance(z), off * (n / (n - 1)) ** 2 / d)


@pytest.mark.parametrize(("n", "d"), [(16, 4), (4, 16)])
def test_an_offset_changes_nothing_and_a_scale_counts_four_times(n: int, d: int) -> None:
    z, shift = torch.randn(n, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    torch.testing.assert_close(covariance(z + 10 * shift), covariance(z))
    torch.testing.assert_close(variance(0.3 * z + 10 * shift), variance(0.3 * z))
    torch.testing.assert_close(covariance(3 * z), 81 * covariance(z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = (300 * torch.randn(20, 30)).to(dtype), torch.randn(20, 30).to(dtype)  # squares beyond float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = invariance(z1, z2), variance(0.1 * z2), covariance(z1), covariance(z1[:, :5])
    exact = invariance(z1.float(), z2.float()), variance((0.1 * z2).float())
    exact = (*exact, covariance(z1.float()), covariance(z1[:, :5].float()))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values)
    for value, expected in zip(values, exact, strict=True):
        torch.testing.assert_close(value, expected)
    assert covariance(z2.double()).dtype == torch.float64


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        covariance(torch.ones(1, 4))
