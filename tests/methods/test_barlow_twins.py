"""Barlow Twins: standardisation by view, scale, its gradient over processes, and what it hands over."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from stand_ins import SmallEncoder, clock, take_step, two_views
from torch import Tensor, nn

from selfsight.batches import TwoViews
from selfsight.distributed import mean, total
from selfsight.methods import barlow_twins
from selfsight.methods.barlow_twins import BarlowTwins
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_


def barlow(scale: float = 1.0) -> BarlowTwins:
    torch.manual_seed(0)
    projector = heads.mlp(6, 8, 5, bias=False, out_bias=False)
    return BarlowTwins(SmallEncoder(), projector, width=5, weight=0.1, scale=scale)


def slow(z1: Tensor, z2: Tensor) -> Tensor:
    z1, z2 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
    loss = torch.zeros(())
    for i in range(5):
        for j in range(5):
            c = (z1[:, i] * z2[:, j]).mean()
            loss = loss + ((1 - c) ** 2 if i == j else 0.1 * c**2)
    return loss


def test_loss_and_gradient_equal_the_equation_with_each_view_standardised_by_itself() -> None:
    method, batch = barlow(), two_views(12)
    objective = take_step(method, batch, moves=False)
    grads = [p.grad.clone() for _, p in method.trainables()["main"]]
    expected = slow(*(method.projector(method.encoder(x)) for x in (batch.x1, batch.x2)))
    torch.testing.assert_close(objective.loss, expected)
    for mine, theirs in zip(
        grads, torch.autograd.grad(expected, [p for _, p in method.trainables()["main"]]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_scale_multiplies_the_loss() -> None:
    whole, part = (take_step(barlow(scale), two_views(8), moves=False) for scale in (1.0, 1 / 16))
    torch.testing.assert_close(part.loss, whole.loss / 16)
    torch.testing.assert_close(part.log["diagonal"], whole.log["diagonal"])


def test_scale_and_shift_of_a_feature_change_nothing() -> None:
    """Sheet 15, check 2: the loss sees correlations, not covariances."""
    batch = two_views(32, dtype=torch.float64)
    losses = []
    for factors in ([1.0] * 5, [2.0, 0.5, 3.0, 1.0, 7.0], [-1.0, 1.0, 1.0, 1.0, 1.0]):
        method = barlow().double()
        with torch.no_grad():
            method.projector[-1].weight.mul_(torch.tensor(factors)[:, None])
        plain = method.projector
        shift = torch.randn(5, dtype=torch.float64) if factors[1] == 0.5 else torch.zeros(5, dtype=torch.float64)
        method.projector = nn.Sequential(plain, Shift(shift))
        losses.append(take_step(method, batch, moves=False).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # the standardisation's eps is not scaled along
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)  # of both views at once


class Shift(nn.Module):
    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, z: Tensor) -> Tensor:
        return z + self.by


def test_standardisation_learns_nothing_and_hides_no_collapse() -> None:
    method, batch = barlow(), two_views(8)
    assert not list(method.standardise.parameters())
    watch = take_step(method, batch, moves=False).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (16, 6), "projection": (16, 5)}
    torch.testing.assert_close(watch["projection"][:8], method.projector(method.encoder(batch.x1)).detach())


def test_it_decorrelates() -> None:
    method, batch = barlow(), two_views(32)
    losses = [take_step(method, batch, lr=0.05).loss.item() for _ in range(20)]
    assert losses[-1] < losses[0] / 2


Mean = Callable[[Tensor], Tensor]


def codes_mean(x: Tensor) -> Tensor:
    """The official code's: a sum over processes that the gradient does not see."""
    own = x / dist.get_world_size()
    return own + (total(x) / dist.get_world_size() - own).detach()


def joined() -> BarlowTwins:
    method = barlow().double()
    set_scope_(method, "all")
    return method


def gradients(method: BarlowTwins, batch: TwoViews) -> list[Tensor]:
    objective = next(method.step(batch, clock()))
    return list(torch.autograd.grad(objective.loss, [p for _, p in method.trainables()["main"]]))


def of_two_processes(patch: pytest.MonkeyPatch, average: Mean) -> list[Tensor]:
    """The gradients of two processes with half of the batch each, averaged as the engine does.

    Two threads in lock step play them: on a processor a backward pass runs in the thread that asks for it.
    """
    local, barrier, desk = threading.local(), threading.Barrier(2, timeout=60), [torch.zeros(()), torch.zeros(())]

    def exchanged(x: Tensor) -> list[Tensor]:
        desk[local.rank] = x.clone()
        barrier.wait()
        both = list(desk)
        barrier.wait()
        return both

    def all_reduce(x: Tensor) -> None:
        x.copy_(sum(exchanged(x)))

    def all_gather(parts: list[Tensor], x: Tensor) -> None:
        for part, theirs in zip(parts, exchanged(x), strict=True):
            part.copy_(theirs)

    batch = two_views(24, dtype=torch.float64)
    parts = [TwoViews(*(x[own] for x in batch)) for own in (slice(0, 12), slice(12, 24))]
    methods = [joined() for _ in range(2)]
    found: list[list[Tensor]] = [[], []]

    def process(rank: int) -> None:
        local.rank = rank
        found[rank] = gradients(methods[rank], parts[rank])

    with patch.context() as world:
        world.setattr(dist, "is_initialized", lambda: True)
        world.setattr(dist, "get_world_size", lambda: 2)
        world.setattr(dist, "get_rank", lambda: local.rank)
        world.setattr(dist, "all_reduce", all_reduce)
        world.setattr(dist, "all_gather", all_gather)
        world.setattr(barlow_twins, "mean", average)
        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [(a + b) / 2 for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize(("average", "share"), [(mean, 1.0), (codes_mean, 0.5)], ids=["here", "the code"])
def test_two_processes_have_the_true_gradient_where_the_code_has_half_of_it(
    average: Mean, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sheet 15: over W processes the code trains with 1 / W of the gradient of the joined batch."""
    alone = gradients(joined(), two_views(24, dtype=torch.float64))
    assert max(float(g.abs().max()) for g in alone) > 0.1
    for mine, theirs in zip(of_two_processes(monkeypatch, average), alone, strict=True):
        torch.testing.assert_close(mine, share * theirs, rtol=1e-7, atol=1e-10)
