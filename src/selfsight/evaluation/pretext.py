"""The method's own task on images it was not trained on: its loss, and whatever it writes beside it.

The same views and heads as in training, but nothing learns: batch norm and dropout as in evaluation, no optimiser
moves. Beside held-out images stand as many of those that the run was trained on, where they still can be opened, and
held-out ones before the first update (batch norm as it starts, with a mean of 0 and a variance of 1).
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight import distributed
from selfsight.data.loader import Loader
from selfsight.data.protocol import DataError, Source
from selfsight.data.splits import Chosen, limited, origin
from selfsight.engine.run import OpenRun, open_run
from selfsight.errors import UserError
from selfsight.evaluation.stream import Place, moved
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.recipes.recipe import Recipe

SAMPLES = 5000
"""At most so many images of either kind."""


def pretext(run: OpenRun, test: Source, *, which: str, seed: int, place: Place) -> dict[str, Any]:
    """Loss and logged numbers: ``trained`` on ``test``, ``seen`` on training images, and ``untrained`` on ``test``.

    What the run was trained on is left out of ``test``; a ``UserError`` where nothing remains (images without labels or
    a test split are all trained on), and for a method whose classes or memory are the training images themselves.
    """
    if run.assembly.recipe.method.by_index:
        raise UserError(f"{run.method} knows its training images one by one, so its task says nothing of others")
    fresh = open_run(run.path, whole=True).assembly.recipe
    own = open_run(run.path, whole=True).recipe("best" if which == "best" else "last")
    seen = _images_of(run)
    if seen is not None:
        test = _without(test, seen)
        if not len(test):
            raise UserError(
                f"{run.path} was trained on all images of {test.name}, so none is held out; give --data with others"
            )
        seen = limited(seen, min(len(test), SAMPLES), seed=seed)
    test = limited(test, SAMPLES, seed=seed)
    batch = min(int(run.settings["resolved"]["batch_size"]), len(test), len(seen or test))
    # another seed than the training's: crops and masks that it has not met
    how: dict[str, Any] = {"clock": last_update(run), "batch": batch, "seed": seed + 1, "place": place}
    try:
        return {
            "trained": task(own, test, **how),
            **({} if seen is None else {"seen": task(own, seen, **how)}),
            "untrained": task(fresh, test, **how),
            "settings": {"images": len(test), "batch_size": batch},
        }
    except ValueError as error:  # a tokenizer or a guide that is another one by now
        raise UserError(f"{run.path}: its task cannot be measured: {error}") from error


def _images_of(run: OpenRun) -> Source | None:
    """What ``run`` was trained on; None where that is gone, as on another machine."""
    try:
        return run.trained_on()
    except (UserError, DataError):
        return None


def _without(source: Source, seen: Source) -> Source:
    """The images of ``source`` that are not among those of ``seen``."""
    (whole, positions), (other, taken) = origin(source), origin(seen)
    if whole.fingerprint != other.fingerprint:
        return source
    positions = np.arange(len(whole)) if positions is None else positions
    new = np.flatnonzero(~np.isin(positions, np.arange(len(other)) if taken is None else taken))
    return Chosen(source, new, name=source.name)


def last_update(run: OpenRun) -> Clock:
    """The clock at a run's last update: temperatures and the like are those of its end."""
    epochs, batch = (int(run.settings["resolved"][name]) for name in ("epochs", "batch_size"))
    updates = epochs * max(run.settings["data"]["samples"] // batch, 1)
    return Clock(step=updates - 1, steps=updates, epoch=epochs - 1, epochs=epochs)


@torch.no_grad()
def task(
    recipe: Recipe[Any], source: Source, *, clock: Clock, batch: int, seed: int, place: Place
) -> Mapping[str, float]:
    """The mean loss and the means of what the method logs, over one pass of ``source``.

    Nothing is dropped and nothing learnt; masks and crops are by ``seed``. A last batch that is not full is left out.
    """
    method: Method[Any] = recipe.method.to(place.device).eval()
    world = distributed.world_size()
    loader = Loader(
        source,
        recipe.views,
        batch_size=min(batch, len(source)) // world * world,
        seed=seed,
        rank=distributed.rank(),
        world=world,
        workers=place.workers,
        cache_dir=place.cache_dir,
    )
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=place.device))
    try:
        for micro in loader.stream(0, loader.steps_per_epoch):
            seen = recipe.views.render(moved(micro.images, place.device), recipe.views.plan(micro.key), micro.key)
            objective = _main(method.step(seen, clock))
            for name, value in {"loss": objective.loss, **objective.log}.items():
                sums[name] += value.float().mean()
    finally:
        loader.close()
    return {name: distributed.mean(value / loader.steps_per_epoch).item() for name, value in sums.items()}


def _main(step: Steps) -> Objective:
    """A step's first objective of the main player; what follows it, memories and targets, is not for this."""
    objective = next(step)
    while "main" not in objective.by:
        objective = step.send(False)
    step.close()
    return objective
