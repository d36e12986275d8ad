"""The contract: every listed recipe's ``tiny()`` is walked through what the engine and users rely on."""

import inspect
import math
import typing
from pathlib import Path

import pytest
import rig
import torch
from groups import together_and_alone

from selfsight.keyed import Key
from selfsight.method import Method
from selfsight.recipes import catalogue

NAMES = list(catalogue.cards())
every = pytest.mark.parametrize("name", NAMES)

SPLITS_INTO_MICRO_BATCHES = set(
    "convmae counting deepmim dvae localmim localmim_swin mae mp3 simmim simmim_swin".split()
)
"""Methods whose loss is a mean over samples that do not see each other. In all others accumulation is not the large
batch: negatives, assignments, cross-correlations, centres or batch norm are computed within a micro-batch."""

BEGINS_AT_ZERO = {"amdim": "residual branches begin at zero, and with them the gradient of what stands before"}
"""Methods whose gradients are looked at after one update."""

FROZEN = {"moco_v3": {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias"}}
"""Parameters of the encoder that a method leaves as they were drawn (MoCo v3, section 4.2: a transformer's patches)."""


def test_there_are_recipes() -> None:
    assert len(NAMES) >= 9


@every
def test_gradients_reach_each_trainable_and_nothing_else(name: str) -> None:
    recipe = rig.build(name)
    named = dict(recipe.method.named_parameters())
    trained = {key for pairs in recipe.method.trainables().values() for key, _ in pairs}
    assert trained <= named.keys()
    reached: set[str] = set()
    if name in BEGINS_AT_ZERO:
        rig.train(recipe, rig.batches(recipe, 1), start=5)
        recipe.method.zero_grad()

    def look(objective: typing.Any) -> bool:
        objective.loss.backward()
        reached.update(key for key, p in named.items() if p.grad is not None and bool(p.grad.abs().sum() > 0))
        return True

    for batch in rig.batches(recipe, 3):
        recipe.method.train()
        rig.drive(recipe.method.step(batch, rig.clock(5, 10)), look)
    assert reached <= trained, f"gradients reach what no optimiser steps on: {sorted(reached - trained)}"
    assert trained <= reached, f"never reached: {sorted(trained - reached)}"


@every
def test_a_step_moves_the_encoder(name: str) -> None:
    recipe = rig.build(name)
    before = {key: p.detach().clone() for key, p in recipe.method.encoder.named_parameters()}
    rig.train(recipe, rig.batches(recipe, 2), start=5)
    moved = {key for key, p in recipe.method.encoder.named_parameters() if not torch.equal(before[key], p)}
    fixed = {"model.pos_embed"} | FROZEN.get(name, set())  # MAE's and MoCo v3's sine-cosine positions
    assert moved >= before.keys() - fixed, f"still where they were: {sorted(before.keys() - fixed - moved)}"
    assert not moved & FROZEN.get(name, set())


@every
def test_same_seed_same_bits(name: str) -> None:
    runs = []
    for _ in range(2):
        recipe = rig.build(name)
        losses, _ = rig.train(recipe, rig.batches(recipe, 3), start=4)
        runs.append((losses, recipe.method.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])


@every
def test_save_load_same_next_loss(name: str, tmp_path: Path) -> None:
    recipe = rig.build(name)
    given = list(rig.batches(recipe, 5))
    _, updater = rig.train(recipe, iter(given[:3]), start=3)
    torch.save({"method": recipe.method.state_dict(), "update": updater.state()}, tmp_path / "state.pt")
    whole, _ = rig.train(recipe, iter(given[3:]), start=6, updater=updater)

    again = rig.build(name, seed=99)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.method.load_state_dict(state["method"])
    fresh = rig.Updater(again, rig.machine(), 1)
    fresh.restore(state["update"])
    resumed, _ = rig.train(again, iter(given[3:]), start=6, updater=fresh)
    assert resumed == whole
    left, right = recipe.method.state_dict(), again.method.state_dict()
    assert all(torch.equal(left[key], right[key]) for key in left)


@every
def test_views_and_method_agree_in_type(name: str) -> None:
    recipe = rig.build(name)
    wanted = typing.get_type_hints(type(recipe.method).step)["batch"]
    assert type(next(rig.batches(recipe, 1))) is wanted
    plain = recipe.views.plain
    images, _ = rig.pictures(2048)
    key = Key(0, torch.zeros(4, dtype=torch.long), torch.arange(4))
    out = plain.render(images[:4], plain.plan(key), key)
    assert recipe.method.encoder(out.x).shape == (4, recipe.method.encoder.width)


@every
def test_the_class_is_final_and_one_deep(name: str) -> None:
    kind = type(rig.build(name).method)
    assert kind.__bases__[0] is Method
    assert not kind.__subclasses__()


@every
def test_bf16_stays_finite(name: str) -> None:
    recipe = rig.build(name)
    losses, _ = rig.train(recipe, rig.batches(recipe, 4), start=3, place=rig.machine(bf16=True))
    assert all(math.isfinite(loss) for loss in losses)
    assert all(bool(p.isfinite().all()) for p in recipe.method.parameters())


@every
def test_accumulation_equals_the_large_batch_where_the_method_allows(name: str) -> None:
    if name not in SPLITS_INTO_MICRO_BATCHES:
        kinds = [type(m).__name__ for m in rig.build(name).method.modules()]
        gathers = "distributed" in Path(inspect.getfile(type(rig.build(name).method))).read_text(encoding="utf-8")
        batch_norm = any("BatchNorm" in kind for kind in kinds)
        assert gathers or batch_norm, "samples do not see each other: list it among those that split"
        return
    whole, parts = rig.exact(rig.build(name)), rig.exact(rig.build(name))
    batch = rig.cast(next(rig.batches(whole, 1)), torch.float64)
    rig.train(whole, iter([batch]), start=5)
    updater, half = rig.Updater(parts, rig.machine(), 2), whole.batch_size // 2
    for k in range(2):
        updater.begin(rig.clock(5, 10), first=k == 0, last=k == 1)
        rig.drive(parts.method.step(rig.rows(batch, k * half, (k + 1) * half), rig.clock(5, 10)), updater)
    left, right = whole.method.state_dict(), parts.method.state_dict()
    assert max(float((left[k] - right[k]).abs().max()) for k in left if left[k].is_floating_point()) < 1e-9


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, typing.Any]]:
    """Every recipe in two processes and in one: started once, since starting costs ten seconds."""
    return together_and_alone(tmp_path_factory.mktemp("two"), world=2, steps=3)


@pytest.mark.slow
@every
def test_two_processes_equal_one_on_the_joined_batch(name: str, together: dict[str, dict[str, typing.Any]]) -> None:
    found = together[name]
    assert found["moved"] > 1e-5, "nothing was trained, so nothing was compared"
    assert found["loss"] < 1e-9, found
    assert found["gradient"] < 1e-5, found
    assert found["state"] < 1e-8, found
    assert found["ranks"] < 1e-12, found
