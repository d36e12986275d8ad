"""MP3's loss: a slow oracle from the equation, its initial value, and what it is blind to."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.position import position_cross_entropy


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def slow(logits: Tensor) -> Tensor:
    """One patch at a time."""
    b, n, _ = logits.shape
    terms = [-(logits[k, i].exp()[i] / logits[k, i].exp().sum()).log() for k in range(b) for i in range(n)]
    return sum(terms) / (b * n)  # type: ignore[return-value]


def test_value_and_gradient_equal_the_equation() -> None:
    logits = torch.randn(3, 5, 5, dtype=torch.float64, requires_grad=True)
    mine, theirs = position_cross_entropy(logits), slow(logits)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, logits)[0], torch.autograd.grad(theirs, logits)[0])
    assert torch.autograd.gradcheck(position_cross_entropy, logits)


@pytest.mark.parametrize("n", [64, 196])
def test_who_knows_nothing_pays_log_n(n: int) -> None:
    assert float(position_cross_entropy(torch.full((2, n, n), 0.3))) == pytest.approx(math.log(n), rel=1e-6)


def test_patches_that_look_alike_never_cost_less_than_log_n() -> None:
    """Equal patches get equal logits: whatever these are, one place in n is right."""
    for scale in (0.1, 1.0, 10.0):
        alike = scale * torch.randn(2, 1, 16).expand(2, 16, 16)
        assert float(position_cross_entropy(alike)) >= math.log(16)


def test_patches_and_places_turned_together_cost_the_same() -> None:
    logits, order = torch.randn(2, 7, 7), torch.randperm(7)
    torch.testing.assert_close(position_cross_entropy(logits[:, order][:, :, order]), position_cross_entropy(logits))
    assert abs(float(position_cross_entropy(logits[:, order]) - position_cross_entropy(logits))) > 1e-3


def test_the_right_answer_costs_nothing() -> None:
    assert float(position_cross_entropy(50 * torch.eye(9).expand(2, 9, 9))) == pytest.approx(0, abs=1e-6)


def test_types() -> None:
    logits = torch.randn(2, 4, 4)
    assert position_cross_entropy(logits.bfloat16()).dtype == torch.float32
    assert position_cross_entropy(logits.double()).dtype == torch.float64
