"""Rows updated late are where torch's SGD would have them, whenever they are read."""

import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from selfsight.engine.machine import Machine
from selfsight.engine.optimisers import LateSGD, clip_, gradient
from selfsight.engine.update import Updater
from selfsight.method import Clock, Method, Objective, Steps, drive
from selfsight.parts.rows import Rows
from selfsight.recipes.recipe import OptimiserSpec, Recipe, decay_all
from selfsight.schedules import constant, linear
from selfsight.views.pipelines import plain_view

N, D = 12, 3
CPU = Machine(torch.device("cpu"), 0, 1, "32", torch.enable_grad)


def pair(*, momentum: float = 0.9, period: int = 1024) -> tuple[Rows, LateSGD, Rows, SGD]:
    """The same rows under both optimisers."""
    torch.manual_seed(0)
    late, dense = Rows(N, D, std=1.0).double(), Rows(N, D).double()
    dense.load_state_dict(late.state_dict())
    return (
        late,
        LateSGD(late.parameters(), momentum=momentum, period=period),
        dense,
        SGD(dense.parameters(), lr=0.0, momentum=momentum),
    )


def rates(optimiser: torch.optim.Optimizer, step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"], group["weight_decay"] = 0.3 / (1 + step % 7), 0.02 * (1 + step % 3)


def advance(rows: Rows, optimiser: torch.optim.Optimizer, step: int, read: Tensor) -> Tensor:
    rates(optimiser, step)
    optimiser.zero_grad()
    seen = rows(read)
    (seen.square() * (1 + step % 4) / 5).sum().backward()  # convex: differences in rounding stay what they are
    optimiser.step()
    return seen.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("period", [1, 5, 1024])
def test_equals_sgd_on_all_rows(momentum: float, period: int) -> None:
    """Sheet 9, check a, with rates that change: what is read is what SGD would have, after gaps of up to 40 steps."""
    late, ours, dense, theirs = pair(momentum=momentum, period=period)
    generator = torch.Generator().manual_seed(1)
    for step in range(60):
        read = torch.randperm(N - 1, generator=generator)[:3].sort().values
        if step in (0, 41):
            read = torch.cat([read, torch.tensor([N - 1])])  # the last row: in the first step, then not for long
        assert_near(advance(late, ours, step, read), advance(dense, theirs, step, read))
    everything = torch.arange(N)
    assert_near(late(everything), dense(everything))


def assert_near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_rows_that_are_not_read_are_not_touched() -> None:
    late, ours, *_ = pair()
    for step in range(3):
        before = late.weight.detach().clone()
        advance(late, ours, step, torch.tensor([2, 5]))
        still = [row for row in range(N) if row not in (2, 5)]
        assert torch.equal(late.weight[still], before[still])
        assert not torch.equal(late.weight[2], before[2])


def test_a_resumed_run_has_the_same_bits() -> None:
    late, ours, *_ = pair(period=7)
    reads = [torch.tensor([i % N, (i * 5 + 1) % N]).unique() for i in range(25)]
    for step in range(10):
        advance(late, ours, step, reads[step])
    kept = io.BytesIO()
    torch.save({"rows": late.state_dict(), "optimiser": ours.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    again = Rows(N, D).double()
    resumed = LateSGD(again.parameters(), momentum=0.9, period=7)
    again.load_state_dict(state["rows"])
    resumed.load_state_dict(state["optimiser"])
    assert resumed.param_groups[0]["since"].dtype == torch.float64
    for step in range(10, 25):
        assert torch.equal(advance(again, resumed, step, reads[step]), advance(late, ours, step, reads[step]))
    assert torch.equal(again(torch.arange(N)), late(torch.arange(N)))


def test_history_does_not_grow() -> None:
    late, ours, *_ = pair(period=5)
    for step in range(40):
        advance(late, ours, step, torch.tensor([step % N]))
        assert len(ours.param_groups[0]["since"]) <= 5
    assert late.weight.isfinite().all()


def test_the_gradient_is_sparse_under_it_and_whole_under_others() -> None:
    late, ours, dense, _ = pair()
    for rows in (late, dense):
        rows(torch.tensor([1, 4])).square().sum().backward()
    assert late.weight.grad.is_sparse
    assert not dense.weight.grad.is_sparse
    assert torch.equal(late.weight.grad.to_dense(), dense.weight.grad)
    late.weight.grad = torch.ones(N, D).double()
    with pytest.raises(ValueError, match="a gradient of all rows"):
        ours.step()
    with pytest.raises(ValueError, match="momentum=1"):
        LateSGD(late.parameters(), momentum=1.0)


def test_clipping_and_the_norm_see_the_rows_of_a_sparse_gradient() -> None:
    late, *_ = pair()
    spec = OptimiserSpec(build=LateSGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all, clip=0.5)
    for read in (torch.tensor([1, 4]), torch.tensor([4, 7])):  # two micro-batches: added, not yet coalesced
        (3 * late(read)).sum().backward()
    expected = torch.zeros(N, D).double()
    expected[1], expected[4], expected[7] = 3.0, 6.0, 3.0
    assert_near(gradient(late.weight), expected[[1, 4, 7]])
    assert_near(clip_([late.weight], spec), expected.norm())
    assert_near(late.weight.grad.to_dense(), expected * 0.5 / (expected.norm() + 1e-6))


class Reader(Method[Tensor]):
    """Reads the rows that a batch names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        torch.manual_seed(0)
        self.rows = Rows(N, D, std=1.0).double()

    def step(self, batch: Tensor, clock: Clock) -> Steps:
        yield Objective(self.rows(batch).cos().sum())


def test_the_engine_moves_it_by_the_clock() -> None:
    """Rates by schedule, through the updater, beside torch's SGD."""
    ends = []
    for build in (partial(LateSGD, momentum=0.9), partial(SGD, momentum=0.9)):
        method = Reader()
        spec = OptimiserSpec(build=build, lr=linear(0.5, 0.1), weight_decay=linear(0.1, 0.2), groups=decay_all)
        recipe = Recipe(method=method, views=plain_view(8, None), optimisers={"main": spec}, epochs=1, batch_size=2)
        updater = Updater(recipe, CPU, 1)
        for step in range(15):
            now = Clock(step, 15, 0, 1)
            updater.begin(now, first=True, last=True)
            drive(method.step(torch.tensor([step % 5, 5 + step % 7]), now), updater)
        ends.append(method.rows(torch.arange(N)).detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-12)
