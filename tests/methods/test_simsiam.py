"""SimSiam: both directions, where the gradient stops, and what the projector gives."""

import pytest
import torch
from stand_ins import SmallEncoder, take_step, two_views
from torch import nn

from selfsight.losses.similarity import negative_cosine
from selfsight.methods.simsiam import SimSiam
from selfsight.parts import heads


def simsiam() -> SimSiam:
    torch.manual_seed(0)
    projector = heads.mlp(6, 8, 8, bias=False, out_bias=False, out_norm="plain")
    return SimSiam(SmallEncoder(), projector, heads.mlp(8, 4, 8, bias=False))


def test_loss_and_gradient_are_the_mean_of_both_directions_of_separate_batches() -> None:
    method, batch = simsiam().double(), two_views(8, dtype=torch.float64)
    objective = take_step(method, batch, moves=False)
    parameters = [p for _, p in method.trainables()["main"]]
    grads = [p.grad.clone() for p in parameters]
    z1, z2 = (method.projector(method.encoder(x)) for x in (batch.x1, batch.x2))
    p1, p2 = method.predictor(z1), method.predictor(z2)
    expected = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
    torch.testing.assert_close(objective.loss, expected)
    for mine, theirs in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_no_gradient_passes_the_stop() -> None:
    """Sheet 11, check 3: with a prediction that does not depend on the view, only the target's side could have one."""
    method = simsiam()
    nn.init.zeros_(method.predictor[-1].weight)
    loss = take_step(method, two_views(8), moves=False).loss
    behind = [*method.encoder.parameters(), *method.projector.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in behind)
    assert method.predictor[-1].bias.grad.any()
    assert -1 < loss.item() < 1


def test_a_prediction_that_hits_costs_minus_one() -> None:
    """Sheet 11, check 1, through the whole method: equal views and an identity predictor."""
    method, batch = simsiam(), two_views(8)
    method.predictor = nn.Identity()
    equal = batch._replace(x2=batch.x1)
    assert take_step(method, equal, moves=False).loss.item() == pytest.approx(-1, abs=1e-6)
    method.predictor = nn.Linear(8, 8, bias=False)
    nn.init.eye_(method.predictor.weight)
    with torch.no_grad():
        method.predictor.weight.mul_(-7)
    assert take_step(method, equal, moves=False).loss.item() == pytest.approx(1, abs=1e-6)


def test_the_projection_has_mean_0_and_variance_1_in_each_feature() -> None:
    """Sheet 11, check 4."""
    z = take_step(simsiam(), two_views(64), moves=False).watch["projection"]
    for half in z.chunk(2):
        torch.testing.assert_close(half.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(half.var(dim=0, correction=0), torch.ones(8), atol=0.05, rtol=0)


def test_what_it_hands_over() -> None:
    method, batch = simsiam(), two_views(8)
    watch = take_step(method, batch, moves=False).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (16, 6), "projection": (16, 8)}
    torch.testing.assert_close(watch["feature"][8:], method.encoder(batch.x2).detach())
    assert not any(x.requires_grad for x in watch.values())
