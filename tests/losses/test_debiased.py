"""Debiased and hard-negative losses: the sheets' checks, a slow oracle from the equation, and their relations."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from selfsight.losses.contrastive import nt_xent
from selfsight.losses.debiased import debiased, effective_negatives, hard_negatives, share_at_the_floor


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def views(b: int, d: int) -> tuple[Tensor, Tensor]:
    image = torch.randn(b, d, dtype=torch.float64)
    z1, z2 = (image + 0.4 * torch.randn(b, d, dtype=torch.float64) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def exponentials(z1: Tensor, z2: Tensor, tau: float) -> list[tuple[Tensor, list[Tensor]]]:
    """For each anchor the positive's and the negatives' exponentials, one at a time."""
    z = [x / x.square().sum().sqrt() for x in [*z1, *z2]]
    b = len(z1)
    every = [[((z[i] * z[k]).sum() / tau).exp() for k in range(2 * b)] for i in range(2 * b)]
    return [(row[(i + b) % (2 * b)], [e for k, e in enumerate(row) if k % b != i % b]) for i, row in enumerate(every)]


def estimates(z1: Tensor, z2: Tensor, tau: float, tau_plus: float, beta: float) -> list[tuple[Tensor, Tensor, float]]:
    """For each anchor the positive's exponential, N g before the floor, and the floor."""
    found = []
    for positive, negatives in exponentials(z1, z2, tau):
        n = len(negatives)
        importance = [e**beta for e in negatives]
        mean = sum(importance) / n
        weighted = sum(w / mean * e for w, e in zip(importance, negatives, strict=True))
        found.append((positive, (weighted - tau_plus * n * positive) / (1 - tau_plus), n * math.exp(-1 / tau)))
    return found


def slow(z1: Tensor, z2: Tensor, tau: float, tau_plus: float, beta: float) -> Tensor:
    losses = [
        -(positive / (positive + estimate.clamp(min=floor))).log()
        for positive, estimate, floor in estimates(z1, z2, tau, tau_plus, beta)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("tau", [0.2, 0.5])
def test_value_and_gradient_equal_the_equation(tau: float, tau_plus: float, beta: float) -> None:
    z1, z2 = views(5, 4)
    mine = hard_negatives(z1, z2, temperature=tau, tau_plus=tau_plus, beta=beta)
    theirs = slow(z1, z2, tau, tau_plus, beta)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, [z1, z2]), torch.autograd.grad(theirs, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_the_oracle_meets_both_sides_of_the_floor() -> None:
    """Else the test above would say nothing about it."""
    z1, z2 = views(5, 4)
    for tau, tau_plus, low, high in ((0.5, 0.6, 0.1, 1.0), (0.5, 0.1, 0.0, 0.2)):
        below = [float(estimate < floor) for _, estimate, floor in estimates(z1, z2, tau, tau_plus, 0.0)]
        share = sum(below) / len(below)
        assert low <= share <= high
        assert share_at_the_floor(z1, z2, temperature=tau, tau_plus=tau_plus).item() == pytest.approx(share)


@pytest.mark.parametrize("beta", [None, 0.0])
def test_no_false_negatives_and_no_hardness_is_nt_xent(beta: float | None) -> None:
    z1, z2 = views(7, 4)
    if beta is None:
        mine = debiased(z1, z2, temperature=0.3, tau_plus=0.0)
    else:
        mine = hard_negatives(z1, z2, temperature=0.3, tau_plus=0.0, beta=beta)
    theirs = nt_xent(z1, z2, temperature=0.3)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(mine, [z1, z2]), torch.autograd.grad(theirs, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_no_hardness_is_debiased() -> None:
    z1, z2 = views(7, 4)
    mine = hard_negatives(z1, z2, temperature=0.5, tau_plus=0.2, beta=0.0)
    assert torch.equal(mine, debiased(z1, z2, temperature=0.5, tau_plus=0.2))
    almost = hard_negatives(z1, z2, temperature=0.5, tau_plus=0.2, beta=1e-9)
    torch.testing.assert_close(almost, mine, rtol=1e-8, atol=0)
    assert abs(mine - nt_xent(z1, z2, temperature=0.5)) > 0.05


@pytest.mark.parametrize("b", [2, 50])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_equal_embeddings_give_the_log_of_the_candidates(b: int, tau_plus: float, beta: float) -> None:
    z = torch.ones(b, 8, dtype=torch.float64)
    value = hard_negatives(z, z, temperature=0.1, tau_plus=tau_plus, beta=beta)
    assert value.item() == pytest.approx(math.log(2 * b - 1), rel=1e-9)


def test_the_estimate_is_that_of_the_true_negatives() -> None:
    """Sheet 5, check 4: two classes of three images each, a point a class; two fifths of an anchor's negatives are of
    its own class. Told so, the loss counts the six others as ten."""
    z = torch.eye(2, dtype=torch.float64).repeat_interleave(3, dim=0)
    expected = math.log(1 + 10 * math.exp(-1 / 0.5))
    assert debiased(z, z, temperature=0.5, tau_plus=0.4).item() == pytest.approx(expected, rel=1e-9)
    assert debiased(z, z, temperature=0.5, tau_plus=0.0).item() > expected + 0.1


def test_below_the_floor_only_the_positive_has_a_gradient() -> None:
    z1 = torch.eye(4, dtype=torch.float64, requires_grad=True)
    z2 = (torch.eye(4, dtype=torch.float64) + 0.1).requires_grad_()
    value = debiased(z1, z2, temperature=0.5, tau_plus=0.5)
    assert share_at_the_floor(z1, z2, temperature=0.5, tau_plus=0.5) == 1
    cosines = torch.nn.functional.cosine_similarity(z1, z2)
    expected = (6 * torch.exp(-2 - cosines / 0.5)).log1p().mean()
    torch.testing.assert_close(value, expected)
    for a, b in zip(torch.autograd.grad(value, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda a, b: debiased(a, b, temperature=0.5, tau_plus=0.5), (z1, z2))


def test_the_temperature_may_be_learnt() -> None:
    z1, z2 = views(4, 3)
    tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    for tau_plus in (0.1, 0.7):  # above and below the floor, which depends on the temperature too
        assert torch.autograd.gradcheck(
            lambda a, b, t, p=tau_plus: hard_negatives(a, b, temperature=t, tau_plus=p, beta=0.5), (z1, z2, tau)
        )


def test_harder_negatives_cost_more() -> None:
    """Sheet 6, check 2: without false negatives the derivative by beta is a covariance."""
    z1, z2 = views(8, 4)
    values = [
        hard_negatives(z1, z2, temperature=0.5, tau_plus=0.0, beta=beta).item() for beta in (0, 0.1, 0.5, 1, 2, 6, 50)
    ]
    assert all(a < b for a, b in pairwise(values))


def test_the_hardest_negative_stands_for_all_in_the_limit() -> None:
    """Sheet 6, check 3."""
    z1, z2 = views(6, 4)
    found = exponentials(z1, z2, 0.5)
    limit = sum((1 + len(e) * max(e) / positive).log() for positive, e in found) / len(found)
    value = hard_negatives(z1, z2, temperature=0.5, tau_plus=0.0, beta=1e4)
    assert value.item() == pytest.approx(limit.item(), rel=1e-4)


def test_gradient_flows_through_the_weights() -> None:
    """Sheet 6, check 4: with the weights held still the value is the same and the gradient is not."""
    z1, z2 = views(5, 4)
    losses = []
    for positive, negatives in exponentials(z1, z2, 0.5):
        importance = torch.stack(negatives).detach()
        still = (importance / importance.mean() * torch.stack(negatives)).sum()
        losses.append((1 + still / positive).log())
    held = sum(losses) / len(losses)
    mine = hard_negatives(z1, z2, temperature=0.5, tau_plus=0.0, beta=1.0)
    torch.testing.assert_close(mine, held)
    a, b = (torch.autograd.grad(value, z1)[0] for value in (mine, held))
    assert (a - b).norm() > 0.05 * b.norm()


def test_effective_negatives() -> None:
    z1, z2 = views(5, 4)
    shares = []
    for _, negatives in exponentials(z1, z2, 0.5):
        w = torch.stack(negatives) ** 1.5
        shares.append(w.sum() ** 2 / w.square().sum())
    expected = torch.stack(shares).mean().item()
    assert effective_negatives(z1, z2, temperature=0.5, beta=1.5).item() == pytest.approx(expected, rel=1e-9)
    assert effective_negatives(z1, z2, temperature=0.5, beta=0.0).item() == pytest.approx(8)
    assert effective_negatives(z1, z2, temperature=0.5, beta=1e4).item() == pytest.approx(1, abs=1e-3)


def test_what_is_no_probability_or_no_hardness_is_refused() -> None:
    z = torch.randn(4, 3)
    for tau_plus in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"tau_plus is a probability below 1; got {tau_plus}"):
            debiased(z, z, temperature=0.5, tau_plus=tau_plus)
    with pytest.raises(ValueError, match="beta must be at least 0; got -1"):
        hard_negatives(z, z, temperature=0.5, tau_plus=0.1, beta=-1.0)
