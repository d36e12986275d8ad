"""What the contract test runs recipes with: the world through the recipe's own views and the engine's updater."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight.data.order import SHUFFLED
from selfsight.data.world import World
from selfsight.engine.machine import Machine
from selfsight.engine.monitors import Monitors
from selfsight.engine.update import Updater
from selfsight.keyed import Key
from selfsight.method import Clock, Objective, drive
from selfsight.parts.batchnorm import set_scope_
from selfsight.precision import bf16_training
from selfsight.recipes import catalogue
from selfsight.recipes.recipe import Recipe

SIZE = 32


def machine(rank: int = 0, world: int = 1, *, bf16: bool = False) -> Machine:
    autocast = partial(bf16_training, "cpu") if bf16 else nullcontext
    return Machine(torch.device("cpu"), rank, world, "bf16" if bf16 else "32", autocast)


@cache
def pictures(n: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """``n`` images of the world, uint8, and their labels."""
    world = World(n, size=SIZE, split=split)
    images = np.stack([np.asarray(image) for image in world.read_many(np.arange(n))])
    return torch.from_numpy(images), torch.from_numpy(np.asarray(world.labels))


def build(name: str, *, seed: int = 0) -> Recipe:
    """A fresh tiny recipe: equal seeds give equal weights."""
    torch.manual_seed(seed)
    return catalogue.tiny(name)


def exact(recipe: Recipe) -> Recipe:
    """In double precision, batch norm over all ranks, nothing random in the network."""
    recipe.method.double()
    set_scope_(recipe.method, "all")
    for module in recipe.method.modules():
        if type(module).__name__ in ("DropPath", "Dropout"):
            module.eval()
            module.train = lambda mode=True: module  # noqa: B023
    return recipe


def batches(recipe: Recipe, count: int, *, size: int | None = None, seed: int = 0) -> Iterator[Any]:
    """``count`` batches of the recipe's type, as the loader would plan them.

    Shuffled images keep one order for all epochs.
    """
    size = size or recipe.batch_size
    images, _ = pictures(2048)
    images = images if recipe.images is None else images[torch.from_numpy(recipe.images)]
    a_round = recipe.order.length(len(images)) // size * size
    for k in range(count):
        now, start = divmod(k * size, a_round)
        order = recipe.order(len(images), seed=seed, round=0 if recipe.order == SHUFFLED else now)
        index = torch.from_numpy(order[start : start + size])
        key = Key(seed, torch.full((size,), now), index)
        yield recipe.views.render(images[index], recipe.views.plan(key), key)


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """A batch with its floating tensors in another precision."""

    def convert(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(dtype) if x.is_floating_point() else x
        return tuple(convert(part) for part in x)

    return type(batch)(*(convert(part) for part in batch))


def rows(batch: Any, start: int, stop: int) -> Any:
    """The samples from ``start`` to ``stop`` of a batch."""

    def part(x: Any) -> Any:
        return x[start:stop] if isinstance(x, Tensor) else tuple(part(y) for y in x)

    return type(batch)(*(part(x) for x in batch))


def clock(step: int, steps: int, epochs: int = 10) -> Clock:
    return Clock(step=step, steps=steps, epoch=step * epochs // steps, epochs=epochs)


class Watch:
    """The engine's monitors on a run of the rig, read every ``every`` updates: ``alarms`` has step and name."""

    def __init__(self, *, every: int = 20) -> None:
        self.monitors, self.every = Monitors(), every
        self.alarms: list[tuple[int, str]] = []

    def __call__(self, objective: Objective, now: Clock) -> None:
        self.monitors.see(objective.watch)
        if (now.step + 1) % self.every == 0:
            found = self.monitors.judge(self.monitors.read(), now.progress)
            self.alarms += [(now.step + 1, one.name) for one in found]


def train(
    recipe: Recipe,
    given: Iterator[Any],
    *,
    start: int = 0,
    steps: int = 10,
    place: Machine | None = None,
    updater: Updater | None = None,
    micro: int = 1,
    see: Callable[[Objective, Clock], object] = lambda objective, now: None,
) -> tuple[list[float], Updater]:
    """Trains on the given batches, ``micro`` of them an update; returns the losses and the updater.

    ``see`` gets each objective after its update.
    """
    place = place or machine()
    updater = updater or Updater(recipe, place, micro)
    recipe.method.train()
    losses: list[float] = []

    def update(objective: Objective) -> bool:
        losses.append(float(objective.loss.detach()))
        moved = updater(objective)
        see(objective, now)
        return moved

    for k, batch in enumerate(given, start=start * micro):
        now = clock(k // micro, steps)
        torch.manual_seed(1000 + k)
        updater.begin(now, first=k % micro == 0, last=k % micro == micro - 1)
        drive(recipe.method.step(batch, now), update, place.autocast)
    return losses, updater
