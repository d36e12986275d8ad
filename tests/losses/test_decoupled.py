"""Decoupled contrastive learning and FlatNCE: slow oracles, and how their gradients relate to NT-Xent's."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from selfsight.losses.contrastive import nt_xent
from selfsight.losses.debiased import debiased
from selfsight.losses.decoupled import decoupled, flat_nce, von_mises_fisher_weights


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def views(b: int, d: int) -> tuple[Tensor, Tensor]:
    image = torch.randn(b, d, dtype=torch.float64)
    z1, z2 = (image + 0.4 * torch.randn(b, d, dtype=torch.float64) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def scores(z1: Tensor, z2: Tensor, tau: float) -> list[tuple[Tensor, Tensor]]:
    """For each anchor its positive's score and its negatives', one at a time."""
    z = [x / x.square().sum().sqrt() for x in [*z1, *z2]]
    b, found = len(z1), []
    for i in range(2 * b):
        row = [(z[i] * z[k]).sum() / tau for k in range(2 * b)]
        found.append((row[(i + b) % (2 * b)], torch.stack([s for k, s in enumerate(row) if k % b != i % b])))
    return found


def same_gradient(mine: Tensor, theirs: Tensor, z1: Tensor, z2: Tensor) -> None:
    for a, b in zip(torch.autograd.grad(mine, [z1, z2]), torch.autograd.grad(theirs, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_decoupled_equals_the_equation(tau: float) -> None:
    z1, z2 = views(5, 4)
    found = scores(z1, z2, tau)
    theirs = sum(-positive + negatives.exp().sum().log() for positive, negatives in found) / len(found)
    mine = decoupled(z1, z2, temperature=tau)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    same_gradient(mine, theirs, z1, z2)


@pytest.mark.parametrize("sigma", [0.3, 0.5])
def test_weighted_equals_the_equation(sigma: float) -> None:
    z1, z2 = views(5, 4)
    raw = (cosine_similarity(z1, z2) / sigma).exp().detach()
    weights = (2 - raw / raw.mean()).repeat(2)
    found = scores(z1, z2, 0.1)
    theirs = sum(-w * p + n.exp().sum().log() for w, (p, n) in zip(weights, found, strict=True)) / len(found)
    mine = decoupled(z1, z2, temperature=0.1, sigma=sigma)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    same_gradient(mine, theirs, z1, z2)
    assert abs(mine - decoupled(z1, z2, temperature=0.1)) > 1e-2


def test_weights_are_one_in_the_mean_and_larger_for_views_far_apart() -> None:
    z1, z2 = views(9, 4)
    weights = von_mises_fisher_weights(z1, z2, sigma=0.5)
    assert weights.mean().item() == pytest.approx(1)
    order = cosine_similarity(z1, z2).argsort()
    assert torch.equal(weights.argsort(descending=True), order)
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="sigma must be greater than 0; got 0"):
        von_mises_fisher_weights(z1, z2, sigma=0.0)


def test_equal_embeddings_give_the_log_of_the_negatives() -> None:
    z = torch.ones(5, 8)
    for sigma in (None, 0.5):
        assert decoupled(z, z, temperature=0.1, sigma=sigma).item() == pytest.approx(math.log(8), rel=1e-6)


def test_decoupled_is_not_debiased() -> None:
    """Both are called DCL; this one can fall below zero."""
    z = torch.eye(4)
    assert decoupled(z, z, temperature=0.1).item() == pytest.approx(math.log(6) - 10, rel=1e-5)
    assert debiased(z, z, temperature=0.1, tau_plus=0.1).item() > 0


def test_flat_nce_is_one() -> None:
    z1, z2 = views(6, 4)
    assert flat_nce(z1, z2, temperature=0.07).item() == 1
    z = torch.ones(4, 3)
    assert flat_nce(z, -z, temperature=0.01).item() == 1


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_flat_nce_has_nt_xents_gradient_over_one_less_the_positives_share(tau: float) -> None:
    """Sheet 7, check 2, anchor by anchor."""
    z1, z2 = views(5, 4)
    losses = []
    for positive, negatives in scores(z1, z2, tau):
        share = torch.cat([positive[None], negatives]).softmax(dim=0)[0]
        losses.append(-share.log() / (1 - share).detach())
    same_gradient(flat_nce(z1, z2, temperature=tau), sum(losses) / len(losses), z1, z2)


def test_flat_nce_has_the_gradient_of_decoupled() -> None:
    z1, z2 = views(7, 4)
    same_gradient(flat_nce(z1, z2, temperature=0.2), decoupled(z1, z2, temperature=0.2), z1, z2)


def test_gradient_survives_a_certain_positive() -> None:
    """Where NT-Xent's share of the positive is 1 - 1e-8 in float32, its gradient is as small and FlatNCE's is whole."""
    z1, z2 = torch.eye(3), torch.eye(3) + 0.05
    grads = {}
    for loss in (flat_nce, nt_xent):
        for dtype in (torch.float32, torch.float64):
            x = z1.to(dtype).requires_grad_()
            grads[loss, dtype] = torch.autograd.grad(loss(x, z2.to(dtype), temperature=0.05), x)[0].double()
    torch.testing.assert_close(grads[flat_nce, torch.float32], grads[flat_nce, torch.float64], rtol=1e-4, atol=1e-5)
    assert grads[flat_nce, torch.float32].norm() > 0.1
    assert grads[nt_xent, torch.float32].norm() < 1e-5
