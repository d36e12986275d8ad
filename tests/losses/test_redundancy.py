"""Barlow Twins' loss: the sheet's checks and a slow oracle."""

import pytest
import torch
from torch import Tensor

from selfsight.losses.redundancy import barlow_twins, cross_correlation


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def standardised(z: Tensor) -> Tensor:
    return (z - z.mean(dim=0)) / z.var(dim=0, unbiased=False).sqrt()


def slow(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    b, d = z1.shape
    loss = z1.new_zeros(())
    for i in range(d):
        for j in range(d):
            c = sum(z1[n, i] * z2[n, j] for n in range(b)) / b
            loss = loss + ((1 - c) ** 2 if i == j else weight * c**2)
    return loss


def whitened(n: int, d: int) -> Tensor:
    """Features with exactly unit variance, no mean and no correlation."""
    x = torch.randn(n, d, dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0))[0] * n**0.5


def test_value_and_gradient_equal_the_equation() -> None:
    z1, z2 = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mine, theirs = barlow_twins(cross_correlation(z1, z2), weight=0.3), slow(z1, z2, 0.3)
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(torch.autograd.grad(mine, [z1, z2]), torch.autograd.grad(theirs, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    c = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: barlow_twins(c, weight=0.2), (c,))


def test_whitened_identical_views_lose_nothing() -> None:
    z = whitened(64, 8)
    assert barlow_twins(cross_correlation(z, z)).item() == pytest.approx(0, abs=1e-20)


def test_independent_views_lose_one_for_each_feature() -> None:
    both = whitened(64, 16)
    loss = barlow_twins(cross_correlation(both[:, :8], both[:, 8:]))
    assert loss.item() == pytest.approx(8, rel=1e-12)


def test_sign_flip_of_one_feature_costs_four() -> None:
    z = whitened(64, 8)
    flipped = z * torch.tensor([-1.0] + [1.0] * 7)
    assert barlow_twins(cross_correlation(z, flipped)).item() == pytest.approx(4, rel=1e-12)


def test_permutations() -> None:
    z1, z2 = (standardised(torch.randn(32, 6, dtype=torch.float64)) for _ in range(2))
    z2 = standardised(z1 + 0.1 * z2)
    features, images = torch.randperm(6), torch.randperm(32)
    value = barlow_twins(cross_correlation(z1, z2))
    torch.testing.assert_close(barlow_twins(cross_correlation(z1[:, features], z2[:, features])), value)
    torch.testing.assert_close(barlow_twins(cross_correlation(z1[images], z2[images])), value)
    assert barlow_twins(cross_correlation(z1, z2[images])) > 2 * value


def test_mean_of_parts_is_the_whole() -> None:
    z1, z2 = torch.randn(12, 5), torch.randn(12, 5)
    parts = [cross_correlation(z1[o : o + 4], z2[o : o + 4]) for o in range(0, 12, 4)]
    torch.testing.assert_close(sum(parts) / 3, cross_correlation(z1, z2))


def test_half_types_and_autocast_are_computed_in_float32() -> None:
    z = torch.randn(300, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        c = cross_correlation(z, z)
        loss = barlow_twins(c)
    assert c.dtype == loss.dtype == torch.float32
    assert torch.equal(c, cross_correlation(z.float(), z.float()))
    assert barlow_twins(c.double()).dtype == torch.float64
