"""Predictive coding's loss: a slow oracle from the equation, the sheets' closed forms, and what leaves it unchanged."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.predictive import future_nce


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def grids(shape: tuple[int, ...], ahead: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    b, h, w, d = shape
    predicted = torch.randn(b, h - ahead, w, d, dtype=dtype, requires_grad=True)
    return predicted, torch.randn(b, h, w, d, dtype=dtype, requires_grad=True)


def slow(predicted: Tensor, targets: Tensor, ahead: int) -> Tensor:
    """Equation 4 of the paper, one prediction and one candidate at a time."""
    b, h, w, _ = targets.shape
    losses = []
    for i in range(b):
        for r in range(h - ahead):
            for c in range(w):
                p = predicted[i, r, c]
                f = {
                    (j, y, x): (p * targets[j, y, x]).sum().exp() for j in range(b) for y in range(h) for x in range(w)
                }
                losses.append(-(f[i, r + ahead, c] / sum(f.values())).log())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_equals_the_papers_equation(ahead: int) -> None:
    predicted, targets = grids((2, 4, 3, 5), ahead)
    mine, theirs = future_nce(predicted, targets, ahead=ahead), slow(predicted, targets, ahead)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    both = [predicted, targets]
    for a, b in zip(torch.autograd.grad(mine, both), torch.autograd.grad(theirs, both), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda p, y: future_nce(p, y, ahead=2), grids((2, 4, 2, 3), 2))


def test_predicting_nothing_costs_the_log_of_all_patches() -> None:
    """Sheet 2, check 1; sheet 3, check 1."""
    y = torch.randn(3, 7, 6, 4, dtype=torch.float64)
    for ahead in (1, 5):
        nothing = torch.zeros(3, 7 - ahead, 6, 4, dtype=torch.float64)
        assert future_nce(nothing, y, ahead=ahead).item() == pytest.approx(math.log(3 * 7 * 6), rel=1e-14)


def test_each_prediction_has_the_label_of_its_own_patch() -> None:
    """Sheet 3, check 4: where each place has a code of its own, the right code alone leaves no loss."""
    b, h, w = 2, 5, 3
    codes = torch.eye(b * h * w).view(b, h, w, -1)
    for ahead in (1, 2):
        assert future_nce(100 * codes[:, ahead:], codes, ahead=ahead) < 1e-6
        assert future_nce(100 * codes[:, :-ahead], codes, ahead=ahead) > 50
        assert future_nce(100 * codes[:, ahead:].flip(2), codes, ahead=ahead) > 50
        assert future_nce(100 * codes[:, ahead:].flip(0), codes, ahead=ahead) > 50


def test_negatives_may_stand_in_any_order() -> None:
    """Sheet 2, check 3: other images change places, the anchors' own stay."""
    predicted, targets = grids((1, 4, 3, 5), 1)
    others = torch.randn(4, 4, 3, 5, dtype=torch.float64)
    values = [
        future_nce(predicted, targets, ahead=1, everyone=torch.cat([targets, others[order]]))
        for order in ([0, 1, 2, 3], [3, 1, 0, 2])
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    shuffled = others.flatten(0, 2)[torch.randperm(48)].view_as(others)
    torch.testing.assert_close(
        future_nce(predicted, targets, ahead=1, everyone=torch.cat([targets, shuffled])), values[0]
    )


def test_parts_are_the_whole() -> None:
    """Processes played one after the other: values average, gradients average."""
    predicted, targets = grids((6, 4, 3, 5), 2)
    whole = future_nce(predicted, targets, ahead=2)
    parts = [
        future_nce(predicted[o : o + 2], targets[o : o + 2], ahead=2, everyone=targets, offset=o) for o in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts) / 3, whole)
    both = [predicted, targets]
    for a, b in zip(torch.autograd.grad(sum(parts) / 3, both), torch.autograd.grad(whole, both), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_it_bounds_the_information(rho: float) -> None:
    """Sheet 2, check 3: with the true density ratio as score, log N - L stays below the information, and near it."""
    n = 2048
    x = torch.randn(n, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n, dtype=torch.float64)
    # log p(y|x) / p(y) up to what depends on x alone
    predicted = torch.stack([rho * x / (1 - rho**2), torch.full_like(x, -0.5 * rho**2 / (1 - rho**2))], dim=1)
    targets = torch.stack([y, y.square()], dim=1)
    grid = torch.cat([torch.zeros(n, 1, 1, 2, dtype=torch.float64), targets.view(n, 1, 1, 2)], dim=1)
    loss = future_nce(predicted.view(n, 1, 1, 2), targets.view(n, 1, 1, 2), ahead=0)
    bound, information = math.log(n) - loss.item(), -0.5 * math.log(1 - rho**2)
    assert information - 0.1 < bound < information + 0.05
    assert future_nce(predicted.view(n, 1, 1, 2), grid, ahead=1) > loss  # more candidates, the same information


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    predicted, targets = grids((3, 4, 3, 8), 1, dtype)
    value = future_nce(predicted, targets, ahead=1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, future_nce(predicted.float(), targets.float(), ahead=1))
    assert all(g.isfinite().all() and g.dtype == dtype for g in torch.autograd.grad(value, [predicted, targets]))
    assert future_nce(200 * predicted, 200 * targets, ahead=1).isfinite()  # scores of a hundred thousand


def test_calls_that_cannot_be_meant() -> None:
    predicted, targets = grids((2, 4, 3, 5), 1)
    with pytest.raises(ValueError, match="got 3 rows of predictions, 2 ahead, for 4 rows"):
        future_nce(predicted, targets, ahead=2)
    with pytest.raises(ValueError, match="offset 1 for 2 images among 2"):
        future_nce(predicted, targets, ahead=1, offset=1)
