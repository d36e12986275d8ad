"""Jigsaw puzzles: tiles in their slots, the loss against its definition, and what tiles that are alike cost."""

import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import Puzzles
from selfsight.method import Clock, Objective, drive
from selfsight.methods.jigsaw import Jigsaw
from selfsight.parts.permutations import maximal_hamming

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)
K = 12


class Flat(nn.Module):
    """An encoder that sees every pixel of a tile of 4."""

    width, stride = 6, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).tanh()

    def dense(self, x: Tensor) -> Tensor:
        return self(x)[..., None, None]


def objective(method: Jigsaw, batch: Puzzles) -> Objective:
    seen: list[Objective] = []
    drive(method.step(batch, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def build() -> Jigsaw:
    torch.manual_seed(0)
    return Jigsaw(Flat(), nn.Linear(6, 5), nn.Linear(45, K), permutations=maximal_hamming(K)).double()


def batch_of(n: int = 3, count: int = 2) -> Puzzles:
    x = torch.randn(n, 9, 3, 4, 4, dtype=torch.float64)
    return Puzzles(x, torch.randint(0, K, (n, count)), torch.arange(n))


def slowly(method: Jigsaw, batch: Puzzles) -> tuple[Tensor, float]:
    """The equation, puzzle by puzzle, with the tiles shuffled before they are encoded; and the share that is right."""
    losses, right = [], 0
    for tiles, labels in zip(batch.x, batch.label.tolist(), strict=True):
        for k in labels:
            slots = [method.reduce(method.encoder(tiles[int(j)][None]))[0] for j in method.permutations[k]]
            z = method.solve(torch.cat(slots)[None])[0]
            losses.append(z.exp().sum().log() - z[k])
            right += int(z.argmax()) == k
    return sum(losses) / len(losses), right / len(losses)


def test_the_loss_is_the_mean_over_puzzles_and_so_is_its_gradient() -> None:
    method, batch = build(), batch_of()
    found = objective(method, batch)
    wanted, right = slowly(method, batch)
    assert float(found.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    assert float(found.log["puzzle_accuracy"]) == pytest.approx(right)
    assert found.watch["feature"].shape == (3, 6)
    one = torch.autograd.grad(found.loss, list(method.parameters()))
    other = torch.autograd.grad(wanted, list(method.parameters()))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_tiles_by_finite_differences() -> None:
    method, batch = build(), batch_of(1)
    x = batch.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(method, batch._replace(x=x)).loss, (x,), fast_mode=True)


def test_putting_slots_back_gives_reading_order() -> None:
    method = build()
    tiles = torch.randn(1, 9, 5, dtype=torch.float64)
    for k in range(K):
        slots = method.slots(tiles, torch.tensor([[k]]))[0]
        assert torch.equal(slots[method.permutations[k].argsort()], tiles[0])
        for slot in range(9):
            assert torch.equal(slots[slot], tiles[0, method.permutations[k, slot]])


def test_a_tile_reaches_its_own_slot_only() -> None:
    method = build()
    tiles = torch.randn(1, 9, 5, dtype=torch.float64)
    other = tiles.clone()
    other[0, 4] += 1
    label = torch.tensor([[3]])
    changed = (method.slots(tiles, label) != method.slots(other, label)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [method.permutations[3].tolist().index(4)]


def test_a_zero_head_costs_the_logarithm_of_the_permutations() -> None:
    method = build()
    nn.init.zeros_(method.solve.weight)
    nn.init.zeros_(method.solve.bias)
    assert float(objective(method, batch_of()).loss.detach()) == pytest.approx(math.log(K))


def test_tiles_that_are_all_alike_cost_at_least_that_whatever_the_network() -> None:
    method = build()
    x = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).expand(-1, 9, -1, -1, -1)
    batch = Puzzles(x, torch.arange(K).expand(2, K), torch.arange(2))  # every permutation equally often
    for _ in range(30):
        method.zero_grad()
        loss = objective(method, batch).loss
        assert float(loss.detach()) >= math.log(K) - 1e-9
        loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                p.sub_(0.2 * p.grad)


def test_the_table_is_saved_with_the_weights() -> None:
    method, other = build(), build()
    other.permutations.copy_(other.permutations.flip(0))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.permutations, maximal_hamming(K))
