"""SimSiam's loss: the sheet's checks and a slow oracle."""

import pytest
import torch

from selfsight.losses.regression import cosine_regression
from selfsight.losses.similarity import negative_cosine


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_value_and_gradient_equal_the_equation() -> None:
    p, z = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mine = negative_cosine(p, z)
    cosines = [(a * b).sum() / (a.square().sum() * b.square().sum()).sqrt() for a, b in zip(p, z, strict=True)]
    theirs = -sum(cosines) / 5
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(torch.autograd.grad(mine, [p, z]), torch.autograd.grad(theirs, [p, z]), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(negative_cosine, (p, z))


def test_parallel_orthogonal_antiparallel() -> None:
    """Sheet 11, check 1: a prediction that hits costs -1."""
    p = torch.eye(6)
    values = [negative_cosine(p, z).item() for z in (5 * p, p.roll(1, dims=0), -2 * p)]
    assert values == pytest.approx([-1, 0, 1], abs=1e-6)


def test_byols_distance_is_twice_it_and_two() -> None:
    p, z = torch.randn(4, 8), torch.randn(4, 8)
    torch.testing.assert_close(cosine_regression(p, z), 2 + 2 * negative_cosine(p, z))


def test_length_does_not_matter_and_the_gradient_shrinks_with_that_of_the_prediction() -> None:
    p, z = torch.randn(4, 8, dtype=torch.float64, requires_grad=True), torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(negative_cosine(3 * p, 0.2 * z), negative_cosine(p, z))
    (near,) = torch.autograd.grad(negative_cosine(p, z), p)
    longer = (10 * p).detach().requires_grad_()
    (far,) = torch.autograd.grad(negative_cosine(longer, z), longer)
    assert near.norm() > 0.05
    torch.testing.assert_close(far, near / 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    large = (6e4 * torch.randn(4, 8).sign() * torch.rand(4, 8)).to(dtype).requires_grad_()  # its squares overflow
    z = torch.randn(4, 8).to(dtype)
    loss = negative_cosine(large, z)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, negative_cosine(large.float(), z.float()))
    assert torch.autograd.grad(loss, large)[0].isfinite().all()
    assert negative_cosine(z.double(), z.double()).dtype == torch.float64
