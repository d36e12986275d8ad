"""Context prediction: which features meet which, the loss against its definition, and what flat patches cost."""

import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import PatchPairs
from selfsight.method import Clock, Objective, drive
from selfsight.methods.context_prediction import ContextPrediction
from selfsight.views.pairs import Which, neighbours

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


class Flat(nn.Module):
    """An encoder that sees every pixel of a patch of 4."""

    width, stride = 6, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).tanh()

    def dense(self, x: Tensor) -> Tensor:
        return self(x)[..., None, None]


def objective(method: ContextPrediction, batch: PatchPairs) -> Objective:
    seen: list[Objective] = []
    drive(method.step(batch, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def pairs_of(x: Tensor, which: Which = "centre") -> PatchPairs:
    return PatchPairs(x, *(row.expand(len(x), -1) for row in neighbours(which)), torch.arange(len(x)))


def build() -> ContextPrediction:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
    return ContextPrediction(Flat(), head).double()


def slowly(method: ContextPrediction, batch: PatchPairs) -> tuple[Tensor, float]:
    """The equation, pair by pair, and how many places are right."""
    losses, right = [], 0
    for b in range(len(batch.x)):
        for i, j, y in zip(batch.first[b].tolist(), batch.second[b].tolist(), batch.label[b].tolist(), strict=True):
            h = [method.encoder(batch.x[b, k][None])[0] for k in (i, j)]
            z = method.head(torch.cat(h)[None])[0]
            losses.append(z.exp().sum().log() - z[y])
            right += int(z.argmax()) == y
    return sum(losses) / len(losses), right / len(losses)


@pytest.mark.parametrize("which", ["centre", "all"])
def test_the_loss_is_the_mean_over_pairs_and_so_is_its_gradient(which: Which) -> None:
    method = build()
    batch = pairs_of(torch.randn(3, 9, 3, 4, 4, dtype=torch.float64), which)
    found = objective(method, batch)
    wanted, right = slowly(method, batch)
    assert float(found.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    assert float(found.log["place_accuracy"]) == pytest.approx(right)
    assert found.watch["feature"].shape == (3, 6)
    one = torch.autograd.grad(found.loss, list(method.parameters()))
    other = torch.autograd.grad(wanted, list(method.parameters()))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_patches_by_finite_differences() -> None:
    method = build()
    x = torch.randn(1, 9, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: objective(method, pairs_of(x)).loss, (x,), fast_mode=True)


def test_the_encoder_is_one_for_both_patches_and_sees_each_alone() -> None:
    method = build()
    x = torch.randn(2, 9, 3, 4, 4, dtype=torch.float64)
    h = method.encoder(x.flatten(0, 1)).unflatten(0, (2, 9))
    batch = pairs_of(x)
    before = method.places(h, batch)
    other = x.clone()
    other[1, 8] += 1  # of the second image, the last pair's second patch
    after = method.places(method.encoder(other.flatten(0, 1)).unflatten(0, (2, 9)), batch)
    changed = (before != after).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [15]


def test_a_zero_head_costs_log_8() -> None:
    method = build()
    nn.init.zeros_(method.head[2].weight)
    nn.init.zeros_(method.head[2].bias)
    loss = objective(method, pairs_of(torch.randn(2, 9, 3, 4, 4, dtype=torch.float64))).loss
    assert float(loss.detach()) == pytest.approx(math.log(8))


def test_patches_that_are_all_alike_cost_at_least_log_8_whatever_the_network() -> None:
    method = build()
    x = torch.randn(4, 1, 3, 4, 4, dtype=torch.float64).expand(-1, 9, -1, -1, -1)
    for _ in range(30):
        method.zero_grad()
        loss = objective(method, pairs_of(x)).loss
        assert float(loss.detach()) >= math.log(8) - 1e-9
        loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                p.sub_(0.2 * p.grad)
