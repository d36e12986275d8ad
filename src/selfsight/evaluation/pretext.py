"""The method's own task on images it was not trained on: its loss, and whatever it writes beside it.

The same views and heads as in training, but nothing learns: batch norm and dropout as in evaluation, no optimiser
moves. Beside held-out images stand as many training images, and held-out ones before the first update.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfsight import distributed
from selfsight.data.loader import Loader
from selfsight.data.protocol import Source
from selfsight.data.splits import limited
from selfsight.engine.run import OpenRun, open_run
from selfsight.errors import UserError
from selfsight.evaluation.stream import Place, moved
from selfsight.method import Clock, Method, Objective, drive
from selfsight.recipes.recipe import Recipe

SAMPLES = 5000
"""At most so many images of either kind."""


def pretext(run: OpenRun, train: Source, test: Source, *, which: str, seed: int, place: Place) -> dict[str, Any]:
    """Loss and logged numbers: ``trained`` on ``test``, the same on ``train``, and ``untrained`` on ``test``.

    A method whose classes or memory are the training images themselves has no answer for others: a ``UserError``.
    """
    fresh, own = open_run(run.path).assembly.recipe, run.recipe("best" if which == "best" else "last")
    if own.method.by_index:
        raise UserError(f"{run.method} knows its training images one by one, so its task says nothing of others")
    count = min(len(test), SAMPLES)
    train, test = (limited(source, count, seed=seed) for source in (train, test))
    batch = min(int(run.settings["resolved"]["batch_size"]), len(test), len(train))
    how = {"batch": batch, "seed": seed, "place": place}
    return {
        "trained": task(own, test, **how),
        "seen": task(own, train, **how),
        "untrained": task(fresh, test, **how),
        "settings": {"images": len(test), "batch_size": batch},
    }


@torch.no_grad()
def task(recipe: Recipe[Any], source: Source, *, batch: int, seed: int, place: Place) -> Mapping[str, float]:
    """The mean loss and the means of what the method logs, over one pass of ``source``; the rest of a batch is left."""
    method: Method[Any] = recipe.method.to(place.device).eval()
    world = distributed.world_size()
    loader = Loader(
        source,
        recipe.views,
        batch_size=batch // world * world,
        seed=seed,
        rank=distributed.rank(),
        world=world,
        workers=place.workers,
        cache_dir=place.cache_dir,
    )
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=place.device))
    clock = Clock(step=0, steps=1, epoch=0, epochs=1)

    def note(objective: Objective) -> bool:
        name = "loss" if "main" in objective.by else f"loss_{'_'.join(objective.by)}"
        for key, value in {name: objective.loss, **objective.log}.items():
            sums[key] += value.float().mean()
        return False

    try:
        for micro in loader.stream(0, loader.steps_per_epoch):
            seen = recipe.views.render(moved(micro.images, place.device), recipe.views.plan(micro.key), micro.key)
            drive(method.step(seen, clock), note)
    finally:
        loader.close()
    return {name: distributed.mean(value / loader.steps_per_epoch).item() for name, value in sums.items()}
