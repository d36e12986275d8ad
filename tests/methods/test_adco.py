"""AdCo: two players on one loss, the adversaries' gradient and step, the bank's start; in two processes as in one."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import rig
import torch
import torch.distributed as dist
from stand_ins import SmallEncoder, clock, two_views
from torch import Tensor
from torch.nn.functional import normalize
from torch.optim import SGD

from selfsight.batches import MultiCrop
from selfsight.engine.update import Updater
from selfsight.losses.contrastive import info_nce
from selfsight.method import Objective, drive
from selfsight.methods.adco import AdCo
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.recipe import OptimiserSpec, Recipe, decay_all
from selfsight.schedules import constant
from selfsight.views.pipelines import multi_crop
from selfsight.views.view import View

TAU, COLDER = 0.2, 0.05


def adco(m: float = 0.9, *, size: int = 24, symmetric: bool = False, fill: bool = False, norm: bool = True) -> AdCo:
    torch.manual_seed(0)
    method = AdCo(
        SmallEncoder(norm=norm),
        heads.mlp(6, 4),
        width=4,
        size=size,
        temperature=TAU,
        adversary_temperature=COLDER,
        momentum=constant(m),
        symmetric=symmetric,
        fill=fill,
    )
    with torch.no_grad():  # as after some training
        for p in method.key_encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def crops(b: int = 8, *, small: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32) -> MultiCrop:
    pair = two_views(b, seed=seed, dtype=dtype)
    return MultiCrop((pair.x1, pair.x2), tuple(pair.x1[..., k:, :5] for k in range(small)), pair.index)


def machine_of(method: AdCo, *, lr: float = 0.1, adversary_lr: float = 0.5, decay: float = 1e-2) -> Updater:
    """The engine's updater with plain SGD for the network and momentum SGD for the adversaries."""

    def spec(rate: float, momentum: float, decay: float) -> OptimiserSpec:
        sgd = partial(SGD, momentum=momentum)
        return OptimiserSpec(build=sgd, lr=constant(rate), weight_decay=constant(decay), groups=decay_all)

    optimisers = {"main": spec(lr, 0.0, 0.0), "adversary": spec(adversary_lr, 0.9, decay)}
    views = multi_crop([View(size=6)] * 2)
    updater = Updater(
        Recipe(method=method, views=views, optimisers=optimisers, epochs=1, batch_size=8), rig.machine(), 1
    )
    updater.begin(clock(), first=True, last=True)
    return updater


def take(
    method: AdCo, batch: MultiCrop, update: Callable[[Objective], bool] = lambda objective: False
) -> list[Objective]:
    """One step, by default without moving anything; returns its objectives."""
    seen: list[Objective] = []

    def look(objective: Objective) -> bool:
        seen.append(objective)
        return update(objective)

    drive(method.step(batch, clock()), look)
    return seen


def plain(encoder: torch.nn.Module, projector: torch.nn.Module, x: Tensor) -> Tensor:
    return normalize(projector(encoder(x)), dim=1)


def query_and_key(method: AdCo, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    return plain(method.encoder, method.projector, x1), plain(method.key_encoder, method.key_projector, x2)


def slow_loss(q: Tensor, k: Tensor, bank: Tensor, tau: float) -> Tensor:
    """Sheet 19's loss, an anchor at a time."""
    losses = []
    for b in range(len(q)):
        keys = [(q[b] @ k[j] / tau).exp() for j in range(len(k))]
        negatives = [(q[b] @ w / w.norm() / tau).exp() for w in bank]
        losses.append(-(keys[b] / (sum(keys) + sum(negatives))).log())
    return sum(losses) / len(losses)


def closed_form(q: Tensor, k: Tensor, bank: Tensor, tau: float) -> Tensor:
    """Sheet 19's gradient of the loss at τ_m, as the official code writes it out."""
    unit = normalize(bank, dim=1)
    p = torch.softmax(torch.cat([q @ k.T, q @ unit.T], dim=1) / tau, dim=1)[:, len(k) :]
    along = (p * (q @ unit.T)).mean(dim=0)[:, None] * unit
    return (p.T @ q / len(q) - along) / (tau * bank.norm(dim=1, keepdim=True))


def test_the_network_meets_all_keys_and_the_bank() -> None:
    method, batch = adco(norm=False).double(), crops(dtype=torch.float64)
    q, k = query_and_key(method, *batch.large)
    network, adversary = take(method, batch)
    torch.testing.assert_close(network.loss, slow_loss(q, k, method.adversaries, TAU))
    torch.testing.assert_close(adversary.loss, -slow_loss(q, k, method.adversaries, COLDER))
    assert (network.by, adversary.by) == (("main",), ("adversary",))


def test_equal_scores_give_the_log_of_the_candidates() -> None:
    """Sheet 19, check 4: log(256 + 65536) = 11.094."""
    method, ones = adco(size=1), torch.ones(256, 4)
    loss = method._contrast(ones, ones, torch.ones(65536, 4), 0.12)
    assert loss.item() == pytest.approx(math.log(256 + 65536), abs=1e-4)


def test_autograd_gives_the_codes_closed_form() -> None:
    """Sheet 19, check 3; and check 1: each adversary's gradient lies along the sphere."""
    method, batch = adco(norm=False).double(), crops(dtype=torch.float64)
    q, k = query_and_key(method, *batch.large)
    ascent = -torch.autograd.grad(take(method, batch)[1].loss, method.adversaries)[0]
    torch.testing.assert_close(ascent, closed_form(q, k, method.adversaries, COLDER), rtol=1e-9, atol=1e-12)
    assert ascent.norm(dim=1).min() > 0
    assert (ascent * method.adversaries).sum(dim=1).abs().max() < 1e-12


def test_gradients_stay_with_their_player() -> None:
    method, batch = adco(), crops()
    network, adversary = take(method, batch)
    named = dict(method.named_parameters())
    trained = {name: {key for key, _ in pairs} for name, pairs in method.trainables().items()}
    for objective, who in ((network, "main"), (adversary, "adversary")):
        method.zero_grad()
        objective.loss.backward()
        assert {key for key, p in named.items() if p.grad is not None} == trained[who]
    assert trained["adversary"] == {"adversaries"}
    assert not any(key.startswith("key_") for key in trained["main"])


def test_a_step_of_the_adversaries_raises_the_loss() -> None:
    """Sheet 19, check 2."""
    method, batch = adco(1.0).double(), crops(dtype=torch.float64)
    before = -take(method, batch)[1].loss
    take(method, batch, machine_of(method, lr=0.0, adversary_lr=0.5, decay=0.0))
    after = -take(method, batch)[1].loss
    assert after > before + 1e-3


def test_the_engines_step_is_the_codes_rule() -> None:
    """v ← 0.9 v - g + λ W, W ← W - lr v, on the features of before the network's step."""
    method = adco(norm=False).double()
    updater = machine_of(method)
    bank = method.adversaries.detach().clone()
    v = torch.zeros_like(bank)
    for step in range(4):
        batch = crops(seed=step, dtype=torch.float64)
        with torch.no_grad():
            q, k = query_and_key(method, *batch.large)
            v = 0.9 * v - closed_form(q, k, bank, COLDER) + 1e-2 * bank
            bank = bank - 0.5 * v
        weights = method.encoder.conv.weight.clone()
        take(method, batch, updater)
        torch.testing.assert_close(method.adversaries.detach(), bank, rtol=1e-9, atol=1e-12)
        assert not torch.equal(method.encoder.conv.weight, weights)


def test_without_a_rate_it_is_info_nce_with_a_fixed_bank() -> None:
    """Sheet 19, check 2: what is left is MoCo with the batch's keys as further negatives."""
    method = adco(norm=False)
    bank, updater = method.adversaries.detach().clone(), machine_of(method, adversary_lr=0.0)
    for step in range(3):
        batch = crops(seed=step)
        q, k = query_and_key(method, *batch.large)
        own = torch.arange(8)[:, None]
        expected = info_nce(q, k, temperature=TAU, negatives=torch.cat([k, bank]), skip=own)
        network, _ = take(method, batch, updater)
        torch.testing.assert_close(network.loss, expected)
    assert torch.equal(method.adversaries, bank)


def test_groups_of_keys_are_drawn_by_lot() -> None:
    """So a query and its key do not share the statistics of their group; keys come back in their images' places."""
    method, x = adco(), crops().large[1]
    set_scope_(method, 4)
    torch.manual_seed(1)
    found = method.keys(x)
    torch.manual_seed(1)
    expected = torch.empty_like(found)
    for group in torch.randperm(8).split(4):
        expected[group] = plain(method.key_encoder, method.key_projector, x[group])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain(method.key_encoder, method.key_projector, x), atol=1e-3)


def test_the_bank_is_filled_with_keys_in_order() -> None:
    method = adco(0.9, size=20, fill=True)
    start, updater = method.adversaries.detach().clone(), machine_of(method)
    filled: list[Tensor] = []
    for step in range(3):
        batch = crops(seed=step)
        q, k = query_and_key(method, *batch.large)
        before = method.adversaries.detach().clone()
        objectives = take(method, batch, updater)
        assert [o.by for o in objectives] == [("main",)]  # the adversaries stand still
        torch.testing.assert_close(objectives[0].loss, info_nce(q, k, temperature=TAU, negatives=before))
        filled.append(k.detach())
        same = all(
            torch.equal(a, b) for a, b in zip(method.encoder.parameters(), method.key_encoder.parameters(), strict=True)
        )
        assert same == (step == 2)  # set to the query encoder once the bank is full
        seen = torch.cat(filled)[:20]
        torch.testing.assert_close(method.adversaries[: len(seen)].detach(), seen)
        assert torch.equal(method.adversaries[len(seen) :], start[len(seen) :])
    assert int(method.filled) == 20
    assert len(take(method, crops(seed=3), updater)) == 2


def test_keys_that_are_not_finite_do_not_enter() -> None:
    method = adco(size=4, fill=True)
    before = method.adversaries.detach().clone()
    method._fill_(torch.tensor([[1.0, torch.nan, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    assert torch.equal(method.adversaries[0], before[0])
    assert method.adversaries[1].tolist() == [0, 1, 0, 0]
    assert int(method.filled) == 2


def test_a_checkpoint_says_how_full_the_bank_is() -> None:
    method, other = adco(size=16, fill=True), adco(size=16, fill=True)
    take(method, crops())
    other.load_state_dict(method.state_dict())
    assert int(other.filled) == 8
    assert torch.equal(other.adversaries, method.adversaries)
    assert len(take(other, crops(seed=1))) == 1
    assert int(other.filled) == 16
    assert torch.equal(other.adversaries[:8], method.adversaries[:8])
    assert len(take(other, crops(seed=2))) == 2


def test_symmetric_is_the_mean_of_both_directions_for_both_players() -> None:
    method, batch = adco(symmetric=True, norm=False), crops()
    x1, x2 = batch.large
    pairs = [query_and_key(method, a, b) for a, b in ((x1, x2), (x2, x1))]
    network, adversary = take(method, batch)
    for objective, tau, sign in ((network, TAU, 1), (adversary, COLDER, -1)):
        expected = sum(slow_loss(q, k, method.adversaries, tau) for q, k in pairs) / 2
        torch.testing.assert_close(objective.loss, sign * expected)


def test_small_crops_are_queries_whose_losses_are_added() -> None:
    method, batch = adco(norm=False), crops(small=2)
    k = query_and_key(method, *batch.large)[1]
    queries = [plain(method.encoder, method.projector, x) for x in (batch.large[0], *batch.small)]
    network, adversary = take(method, batch)
    for objective, tau, sign in ((network, TAU, 1), (adversary, COLDER, -1)):
        expected = sum(slow_loss(q, k, method.adversaries, tau) for q in queries)
        torch.testing.assert_close(objective.loss, sign * expected)


def test_key_encoder_moves_after_the_step_if_an_optimiser_moved() -> None:
    for moves in (True, False):
        method = adco(0.9).double()
        before = method.key_encoder.conv.weight.clone()
        take(method, crops(dtype=torch.float64), machine_of(method) if moves else lambda objective: False)
        expected = 0.9 * before + 0.1 * method.encoder.conv.weight if moves else before
        torch.testing.assert_close(method.key_encoder.conv.weight, expected, rtol=0, atol=1e-12)


def test_what_it_hands_over() -> None:
    method, batch = adco(norm=False), crops()
    q, k = query_and_key(method, *batch.large)
    network, adversary = take(method, batch)
    assert {name: x.shape for name, x in network.watch.items()} == {"feature": (8, 6), "projection": (16, 4)}
    torch.testing.assert_close(network.watch["projection"], torch.cat([q, k]).detach())
    scores = torch.cat([q @ k.T, q @ normalize(method.adversaries, dim=1).T], dim=1) / COLDER
    expected = scores.softmax(dim=1)[:, :8].sum(dim=1).mean()
    torch.testing.assert_close(adversary.log["key_share"], expected)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="takes two large crops, a query's and a key's, not 3"):
        take(adco(), crops()._replace(large=(*crops().large, crops().large[0])))
    with pytest.raises(ValueError, match="symmetric AdCo takes no small crops, not 1"):
        take(adco(symmetric=True), crops(small=1))
    with pytest.raises(ValueError, match="the number of adversaries is 0"):
        adco(size=0)


def trained(rank: int, world: int) -> dict[str, Tensor]:
    """Two steps that fill the bank and three of both players, on one process's part of each batch of 16."""
    method = adco(symmetric=True, size=32, fill=True).double()
    set_scope_(method, 4)
    updater = machine_of(method)
    updater.machine = rig.machine(rank, world)
    share = 16 // world
    for step in range(5):
        torch.manual_seed(100 * step + rank)  # the engine's seeds differ by rank
        take(method, rig.rows(crops(16, seed=step, dtype=torch.float64), rank * share, (rank + 1) * share), updater)
    return method.state_dict()


@pytest.mark.slow
def test_two_processes_have_the_adversaries_of_one(tmp_path: Path) -> None:
    support = str(Path(__file__).parents[1] / "support")
    path = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()  # where one died, the other waits for it
    assert all(process.returncode == 0 for process in started), "\n".join(errors)[-3000:]
    alone = trained(0, 1)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["adversaries"], second["adversaries"])
    assert not torch.allclose(first["adversaries"].norm(dim=1), torch.ones(32, dtype=torch.float64))  # they moved
    for name, x in alone.items():
        for state in (first, second):
            torch.testing.assert_close(state[name], x, rtol=1e-9, atol=1e-10, msg=name)


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save(trained(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()
