"""The engine's side of a yield, on a method of two parameters whose gradients are known."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
import rig
import torch
from torch import Tensor, nn

from selfsight.engine.update import Updater
from selfsight.errors import TrainingError
from selfsight.method import Clock, Method, Objective, Steps, drive
from selfsight.recipes.recipe import OptimiserSpec, Recipe, decay_all
from selfsight.schedules import constant, linear
from selfsight.views.pipelines import plain_view

NOW = Clock(step=0, steps=10, epoch=0, epochs=1)


class Pair(Method[Tensor]):
    """Minimises ``mean(batch) * a + b`` as two players: ``a`` belongs to ``main``, ``b`` to ``other``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = cast(Any, nn.Identity())
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
        self.moved: list[bool] = []
        self.hold: tuple[nn.Parameter, ...] = ()
        self.seen_a: list[float] = []

    def trainables(self) -> Mapping[str, list[tuple[str, nn.Parameter]]]:
        return {"main": [("a", self.a)], "other": [("b", self.b)]}

    def step(self, batch: Tensor, clock: Clock) -> Steps:
        loss = batch.mean() * self.a + 5 * self.b
        self.moved.append((yield Objective(loss, by=("main",), hold=self.hold)))
        self.seen_a.append(self.a.item())
        self.moved.append((yield Objective(7 * self.b * self.a, by=("other",))))


def recipe_of(method: Pair, **optimisers: OptimiserSpec) -> Recipe:
    return Recipe(method=method, views=plain_view(8, None), optimisers=optimisers, epochs=1, batch_size=2)


def pair(accumulate: int = 1, **spec: Any) -> tuple[Pair, Updater]:
    method = Pair()
    one = OptimiserSpec(build=torch.optim.SGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all, **spec)
    recipe = Recipe(
        method=method, views=plain_view(8, None), optimisers={"main": one, "other": one}, epochs=1, batch_size=2
    )
    return method, Updater(recipe, rig.machine(), accumulate)


def run(method: Pair, updater: Updater, *batches: Tensor) -> None:
    for k, batch in enumerate(batches):
        updater.begin(NOW, first=k == 0, last=k == len(batches) - 1)
        drive(method.step(batch, NOW), updater)


def test_each_objective_moves_its_own_parameters_only() -> None:
    method, updater = pair()
    run(method, updater, torch.tensor([2.0, 4.0]))
    assert method.a.item() == pytest.approx(1 - 0.1 * 3)
    assert method.seen_a == [pytest.approx(0.7)], "what stands after the yield sees the updated weights"
    assert method.b.item() == pytest.approx(1 - 0.1 * 7 * 0.7)
    assert method.moved == [True, True]


def test_accumulation_averages_micro_batches_and_moves_once() -> None:
    method, updater = pair(accumulate=2)
    run(method, updater, torch.tensor([2.0]), torch.tensor([6.0]))
    assert method.a.item() == pytest.approx(1 - 0.1 * 4)
    assert method.moved == [False, False, True, True]


class Together(Pair):
    """One objective that both optimisers step on."""

    def step(self, batch: Tensor, clock: Clock) -> Steps:
        self.moved.append((yield Objective(batch.mean() * self.a + 5 * self.b, by=("main", "other"))))


def test_optimisers_of_one_objective_share_the_scale_that_its_gradient_has() -> None:
    spec = OptimiserSpec(build=torch.optim.SGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all)
    method = Together()
    updater = Updater(recipe_of(method, main=spec, other=spec), rig.machine(), 1)
    updater.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)  # it doubles with each update
    run(method, updater, torch.tensor([3.0]))
    assert method.a.item() == pytest.approx(1 - 0.1 * 3)
    assert method.b.item() == pytest.approx(1 - 0.1 * 5)
    assert updater.scaler.get_scale() == 8.0
    updater.begin(NOW, first=True, last=True)
    drive(method.step(torch.tensor([float("inf")]), NOW), updater)
    assert method.moved == [True, False]
    assert updater.scaler.get_scale() == 4.0


def test_what_is_held_stays() -> None:
    method, updater = pair()
    method.hold = (method.a,)
    run(method, updater, torch.tensor([2.0]))
    assert method.a.item() == 1.0
    assert method.b.item() != 1.0


def test_clipping_bounds_the_step() -> None:
    method, updater = pair(clip=0.5)
    run(method, updater, torch.tensor([2.0]))
    assert method.a.item() == pytest.approx(1 - 0.1 * 0.5, rel=1e-4)


def test_rates_follow_the_clock() -> None:
    method = Pair()
    spec = OptimiserSpec(build=torch.optim.SGD, lr=linear(0.0, 1.0), weight_decay=constant(0.0), groups=decay_all)
    recipe = Recipe(
        method=method, views=plain_view(8, None), optimisers={"main": spec, "other": spec}, epochs=1, batch_size=1
    )
    updater = Updater(recipe, rig.machine(), 1)
    updater.begin(Clock(step=5, steps=10, epoch=0, epochs=1), first=True, last=True)
    drive(method.step(torch.tensor([2.0]), NOW), updater)
    assert method.seen_a == [pytest.approx(1 - 0.5 * 2)]


def test_a_gradient_that_is_not_finite_is_not_stepped_on() -> None:
    method, updater = pair()
    for k, bad in enumerate([float("nan"), float("inf"), float("-inf")]):
        updater.begin(NOW, first=True, last=True)
        assert updater(Objective(method.a * bad)) is False
        assert updater.failed
        assert updater.in_a_row == k
    updater.begin(NOW, first=True, last=True)
    assert updater(Objective(method.a * 1.0)) is True
    assert not updater.failed
    assert method.a.item() == pytest.approx(0.9)


def test_a_loss_that_is_not_finite_is_not_stepped_on_though_its_gradient_is() -> None:
    method, updater = pair()
    updater.begin(NOW, first=True, last=True)
    assert updater(Objective(method.a + float("inf"))) is False
    assert method.a.item() == 1.0


def test_a_device_that_is_not_asked_remembers_the_first_step_that_was_not_finite() -> None:
    method, updater = pair()
    updater.looks = False  # as on a GPU
    for step, factor in enumerate([1.0, float("nan"), 1.0, float("inf")]):
        assert not step or updater.sound() == (step < 2)
        updater.begin(Clock(step=step, steps=10, epoch=0, epochs=1), first=True, last=True)
        updater(Objective(method.a * factor))
    with pytest.raises(TrainingError, match=r"^step 1: not finite: .*go on by --resume --log-every 1"):
        updater.refuse()


def test_a_recipe_must_name_the_methods_optimisers() -> None:
    method = Pair()
    spec = OptimiserSpec(build=torch.optim.SGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all)
    recipe = recipe_of(method, main=spec)
    with pytest.raises(ValueError, match="recipe has optimisers"):
        Updater(recipe, rig.machine(), 1)


def test_one_optimiser_twice_a_batch_cannot_be_accumulated() -> None:
    method, updater = pair(accumulate=2)
    updater.begin(NOW, first=True, last=False)
    updater(Objective(method.a * 1.0))
    with pytest.raises(TrainingError, match="--accumulate"):
        updater(Objective(method.a * 1.0))
