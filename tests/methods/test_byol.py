"""BYOL: who gets a gradient, when the target moves, and the loss's closed cases."""

import copy

import pytest
import torch
from stand_ins import SmallEncoder, clock, take_step, two_views
from torch import nn

from selfsight.losses.regression import cosine_regression
from selfsight.methods.byol import BYOL
from selfsight.parts import heads
from selfsight.schedules import constant, cosine


def byol(m: float = 0.9, **options: object) -> BYOL:
    torch.manual_seed(0)
    return BYOL(
        SmallEncoder(),
        heads.mlp(6, 8, 4, out_bias=False),
        heads.mlp(4, 8, 4, out_bias=False),
        momentum=constant(m),
        **options,
    )


def target(method: BYOL) -> list[torch.Tensor]:
    return [*method.target_encoder.parameters(), *method.target_projector.parameters()]


def online(method: BYOL) -> list[torch.Tensor]:
    return [*method.encoder.parameters(), *method.projector.parameters()]


def test_loss_adds_both_directions_of_separate_batches() -> None:
    method, batch = byol(), two_views(8)
    objective = take_step(method, batch, moves=False)
    p1, p2 = (method.predictor(method.projector(method.encoder(x))) for x in (batch.x1, batch.x2))
    t1, t2 = (method.target_projector(method.target_encoder(x)) for x in (batch.x1, batch.x2))
    torch.testing.assert_close(objective.loss, cosine_regression(p1, t2) + cosine_regression(p2, t1))


def test_target_gets_no_gradient_and_is_no_trainable() -> None:
    method = byol()
    take_step(method, two_views(8))
    assert all(p.grad is None for p in target(method))
    trained = {id(p) for _, p in method.trainables()["main"]}
    assert not trained & {id(p) for p in target(method)}
    assert all(p.grad is not None for p in [*online(method), *method.predictor.parameters()])


@pytest.mark.parametrize("m", [0.0, 0.9, 1.0])
def test_target_moves_after_the_step_towards_the_new_weights(m: float) -> None:
    method = byol(m).double()
    before = [p.clone() for p in target(method)]
    take_step(method, two_views(8, dtype=torch.float64))
    for old, new, o in zip(before, target(method), online(method), strict=True):
        torch.testing.assert_close(new, m * old + (1 - m) * o, rtol=0, atol=1e-12)
    assert not torch.equal(before[0], online(method)[0])


def test_target_stays_when_no_optimiser_moved() -> None:
    method = byol(0.0)
    before = [p.clone() for p in target(method)]
    with torch.no_grad():
        online(method)[0].add_(1)
    take_step(method, two_views(8), moves=False)
    assert all(torch.equal(a, b) for a, b in zip(before, target(method), strict=True))


def test_momentum_is_read_from_the_clock() -> None:
    method = byol()
    method.momentum = cosine(0.0, 1.0)
    take_step(method, two_views(8), clock(0, 100))  # momentum 0: the target becomes the online network
    torch.testing.assert_close(target(method)[0], online(method)[0])
    before = target(method)[0].clone()
    take_step(method, two_views(8), clock(100, 100))  # momentum 1: it stays
    assert torch.equal(target(method)[0], before)


def test_target_keeps_statistics_of_its_own_passes() -> None:
    method, batch = byol(1.0), two_views(8)
    take_step(method, batch)
    expected = copy.deepcopy(SmallEncoder().norm)
    for x in (batch.x1, batch.x2):
        expected(method.target_encoder.conv(x))
    torch.testing.assert_close(method.target_encoder.norm.running_mean, expected.running_mean)


def test_a_target_of_its_own_seed() -> None:
    other = SmallEncoder(), heads.mlp(6, 8, 4, out_bias=False)
    method = byol(target=other)
    assert torch.equal(method.target_encoder.conv.weight, other[0].conv.weight)
    assert not torch.equal(method.target_encoder.conv.weight, method.encoder.conv.weight)
    assert all(p.requires_grad for p in other[0].parameters())


def test_prediction_of_the_target_itself_costs_nothing() -> None:
    """Sheet 10, check 1, through the whole method: equal views, an identity predictor, a copied target."""
    method = byol()
    method.predictor = nn.Identity()
    batch = two_views(8)
    assert take_step(method, batch._replace(x2=batch.x1), moves=False).loss.item() == pytest.approx(0, abs=1e-6)
    method.predictor = nn.Linear(4, 4, bias=False)
    nn.init.constant_(method.predictor.weight, 0)
    with torch.no_grad():
        method.predictor.weight.fill_diagonal_(-1)
    assert take_step(method, batch._replace(x2=batch.x1), moves=False).loss.item() == pytest.approx(8, rel=1e-6)
