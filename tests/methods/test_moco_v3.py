"""MoCo v3: the loss in both directions, the key encoder's moves, and a transformer's frozen first layer."""

import copy
import math

import pytest
import rig
import torch
from stand_ins import SmallEncoder, clock, take_step, two_views
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from selfsight.methods.moco_v3 import MoCoV3
from selfsight.parts import heads
from selfsight.schedules import constant, cosine

FROZEN = ("model.pos_embed", "model.patch_embed.proj.weight", "model.patch_embed.proj.bias")


def moco(m: float = 0.9, temperature: float = 0.2) -> MoCoV3:
    torch.manual_seed(0)
    head = {"bias": False, "out_bias": False}
    return MoCoV3(
        SmallEncoder(),
        heads.mlp(6, 8, 4, **head, out_norm="plain"),
        heads.mlp(4, 8, 4, **head),
        temperature=temperature,
        momentum=constant(m),
    ).double()


def batch_of(b: int = 8, seed: int = 0) -> object:
    return two_views(b, seed=seed, dtype=torch.float64)


def keys(method: MoCoV3) -> list[Tensor]:
    return [*method.key_encoder.parameters(), *method.key_projector.parameters()]


def queries(method: MoCoV3) -> list[Tensor]:
    return [*method.encoder.parameters(), *method.projector.parameters()]


def symmetric_info_nce(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], tau: float) -> Tensor:
    """The cross-entropy over the batch, both directions added."""
    loss = torch.zeros(())
    for q, k in (first, second):
        logits = normalize(q, dim=1) @ normalize(k, dim=1).T / tau
        loss = loss + cross_entropy(logits, torch.arange(len(q)))
    return loss


def test_loss_and_gradient_are_the_equation_of_separate_batches() -> None:
    method, batch = moco(), batch_of()
    with torch.no_grad():
        for p in keys(method):  # a key encoder that is no copy
            p.add_(0.1 * torch.randn_like(p))
    objective = take_step(method, batch, moves=False)
    parameters = [p for _, p in method.trainables()["main"]]
    grads = [p.grad.clone() for p in parameters]
    q1, q2 = (method.predictor(method.projector(method.encoder(x))) for x in (batch.x1, batch.x2))
    k1, k2 = (method.key_projector(method.key_encoder(x)).detach() for x in (batch.x1, batch.x2))
    expected = 2 * 0.2 * symmetric_info_nce((q1, k2), (q2, k1), 0.2)
    torch.testing.assert_close(objective.loss, expected)
    for mine, theirs in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_without_momentum_and_predictor_it_is_the_symmetric_info_nce() -> None:
    method = moco(0.0, temperature=0.5)  # 2 tau is 1
    method.predictor = nn.Identity()
    take_step(method, batch_of(seed=1))
    batch = batch_of()
    objective = take_step(method, batch, moves=False)
    z1, z2 = (method.projector(method.encoder(x)) for x in (batch.x1, batch.x2))
    torch.testing.assert_close(objective.loss, symmetric_info_nce((z1, z2), (z2, z1), 0.5))


@pytest.mark.parametrize(("tau", "published"), [(0.2, 6.654), (1.0, 33.27)])
def test_equal_features_cost_four_tau_log_b(tau: float, published: float) -> None:
    """Sheet 18, check 1, at the paper's batch."""
    method, ones = moco(temperature=tau), torch.ones(4096, 4)
    loss = 2 * method.contrast(ones, ones).item()
    assert loss == pytest.approx(4 * tau * math.log(4096), rel=1e-5)
    assert loss == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("m", [0.0, 0.9, 1.0])
def test_the_key_encoder_moves_after_the_step_and_gets_no_gradient(m: float) -> None:
    method = moco(m)
    before = [p.clone() for p in keys(method)]
    take_step(method, batch_of())
    for old, new, query in zip(before, keys(method), queries(method), strict=True):
        torch.testing.assert_close(new, m * old + (1 - m) * query, rtol=0, atol=1e-12)
    assert all(p.grad is None for p in keys(method))
    assert not torch.equal(before[0], queries(method)[0])
    trained = {id(p) for _, p in method.trainables()["main"]}
    assert trained == {id(p) for p in [*queries(method), *method.predictor.parameters()]}


def test_without_a_move_the_key_encoder_stays() -> None:
    method = moco(0.0)
    before = [p.clone() for p in keys(method)]
    with torch.no_grad():
        queries(method)[0].add_(1)
    take_step(method, batch_of(), moves=False)
    assert all(torch.equal(a, b) for a, b in zip(before, keys(method), strict=True))


def test_the_momentum_is_read_from_the_clock() -> None:
    method = moco()
    method.momentum = cosine(0.0, 1.0)
    take_step(method, batch_of(), clock(0, 100))  # momentum 0: the key encoder becomes the query encoder
    torch.testing.assert_close(keys(method)[0], queries(method)[0])
    before = keys(method)[0].clone()
    take_step(method, batch_of(), clock(100, 100))  # momentum 1: it stays
    assert torch.equal(keys(method)[0], before)


def test_keys_have_statistics_of_their_own_passes() -> None:
    method, batch = moco(1.0), batch_of()
    take_step(method, batch)
    expected = copy.deepcopy(SmallEncoder().double().norm)
    for x in (batch.x1, batch.x2):
        expected(method.key_encoder.conv(x))
    torch.testing.assert_close(method.key_encoder.norm.running_mean, expected.running_mean)
    assert "key_encoder.norm.running_mean" in method.state_dict()
    assert not any("queue" in name for name in method.state_dict())


def test_a_transformers_first_layer_and_positions_stay_and_are_no_trainables() -> None:
    """Sheet 18, check 2: no gradient, no place in the optimiser, the same tensors in both branches."""
    recipe = rig.build("moco_v3")
    method = recipe.method
    branches = method.encoder, method.key_encoder
    before = {name: branches[0].get_parameter(name).detach().clone() for name in FROZEN}
    _, updater = rig.train(recipe, rig.batches(recipe, 3), start=5)
    stepped = {id(p) for group in updater.optimisers["main"].param_groups for p in group["params"]}
    for branch in branches:
        for name in FROZEN:
            p = branch.get_parameter(name)
            assert torch.equal(p, before[name])
            assert p.grad is None
            assert id(p) not in stepped
    assert not {f"encoder.{name}" for name in FROZEN} & {name for name, _ in method.trainables()["main"]}
    assert {f"encoder.{name}" for name in FROZEN} <= method.state_dict().keys()
    assert id(branches[0].get_parameter("model.blocks.0.attn.qkv.weight")) in stepped


def test_what_it_hands_over() -> None:
    method, batch = moco(), batch_of()
    watch = take_step(method, batch, moves=False).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (16, 6), "projection": (16, 4)}
    torch.testing.assert_close(watch["projection"][:8], method.projector(method.encoder(batch.x1)).detach())
