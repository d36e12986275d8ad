"""What holds SimSiam up: trained shortly on the world, whole and with one of its two supports gone."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import rig
import torch
from torch import nn

from selfsight.batches import TwoViews
from selfsight.evaluation.quality import effective_rank, feature_std
from selfsight.losses.similarity import negative_cosine
from selfsight.method import Clock, Method, Objective, Steps


class Without(Method[TwoViews]):
    """SimSiam less a support; a class of its own, since the published method has no such switch."""

    def __init__(self, of: Method[TwoViews], *, stop: bool, predictor: bool) -> None:
        super().__init__()
        self.encoder, self.projector = of.encoder, of.projector
        self.predictor = of.predictor if predictor else nn.Identity()
        self.stop = stop

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        z1, z2 = (self.projector(self.encoder(x)) for x in (batch.x1, batch.x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t1, t2 = (z1.detach(), z2.detach()) if self.stop else (z1, z2)
        yield Objective((negative_cosine(p1, t2) + negative_cosine(p2, t1)) / 2)


class Outcome(NamedTuple):
    """The last losses' mean, the effective rank of projections, and their deviation as a part of an even spread's."""

    loss: float
    rank: float
    spread: float


@cache
def batches() -> tuple[list[TwoViews], TwoViews]:
    """What every variant is trained on, and what it is looked at with."""
    recipe = rig.build("simsiam")
    (batch,) = rig.batches(recipe, 1, size=256, seed=7)
    return list(rig.batches(recipe, 40)), batch


def outcome(*, stop: bool = True, predictor: bool = True) -> Outcome:
    """The mean over three seeds: after so few updates one run's rank is 14 to 22, by seed and by machine."""
    each = [of_seed(seed, stop=stop, predictor=predictor) for seed in range(3)]
    return Outcome(*(sum(values) / len(each) for values in zip(*each, strict=True)))


def of_seed(seed: int, *, stop: bool, predictor: bool) -> Outcome:
    recipe = rig.build("simsiam", seed=seed)
    main = recipe.optimisers["main"]  # at a rate that shows it within 40 updates
    recipe = replace(recipe, optimisers={"main": replace(main, lr=main.lr.with_peak(5e-3))})
    if not (stop and predictor):
        recipe = replace(recipe, method=Without(recipe.method, stop=stop, predictor=predictor))
    given, batch = batches()
    losses, _ = rig.train(recipe, iter(given), steps=80)
    with torch.no_grad():
        z = recipe.method.projector(recipe.method.encoder(batch.x1))
    return Outcome(sum(losses[-10:]) / 10, effective_rank(z), feature_std(z) * z.shape[1] ** 0.5)


@pytest.mark.slow
def test_simsiam_stands_and_falls_without_either_support() -> None:
    """Sheet 11, check 2. Each variant finds a lower loss and a worse answer.

    Without the stop all projections become one direction. Without the predictor the projector's batch norm forbids
    that, and they become few: the deviation of each feature sees nothing, the rank does.
    """
    whole, moving, bare = outcome(), outcome(stop=False), outcome(predictor=False)
    assert whole.rank > 15
    assert whole.spread > 0.95
    assert moving.rank < 4
    assert moving.spread < 0.6
    assert moving.loss < whole.loss - 0.05
    assert bare.rank < 10
    assert bare.loss < whole.loss - 0.05
