"""BYOL's loss: the sheet's checks and a slow oracle."""

import pytest
import torch

from selfsight.losses.regression import cosine_regression


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_value_and_gradient_equal_the_equation() -> None:
    p, z = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mine = cosine_regression(p, z)
    cosines = [(a * b).sum() / (a.square().sum() * b.square().sum()).sqrt() for a, b in zip(p, z, strict=True)]
    theirs = sum(2 - 2 * c for c in cosines) / 5
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(torch.autograd.grad(mine, [p, z]), torch.autograd.grad(theirs, [p, z]), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(cosine_regression, (p, z))


def test_parallel_orthogonal_antiparallel() -> None:
    p = torch.eye(6)
    values = [cosine_regression(p, z).item() for z in (5 * p, p.roll(1, dims=0), -2 * p)]
    assert values == pytest.approx([0, 2, 4], abs=1e-6)


def test_length_does_not_matter_and_gradient_is_at_right_angles() -> None:
    p, z = torch.randn(4, 8, dtype=torch.float64, requires_grad=True), torch.randn(4, 8, dtype=torch.float64)
    loss = cosine_regression(p, z)
    torch.testing.assert_close(cosine_regression(3 * p, 0.2 * z), loss)
    (grad,) = torch.autograd.grad(loss, p)
    assert grad.norm() > 0.1
    torch.testing.assert_close((grad * p).sum(dim=1), torch.zeros(4, dtype=torch.float64))


def test_types() -> None:
    p = torch.randn(4, 8)
    half = cosine_regression(p.bfloat16(), p.bfloat16() + 1)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, cosine_regression(p.bfloat16().float(), (p.bfloat16() + 1).float()))
    assert cosine_regression(p.double(), p.double()).dtype == torch.float64
