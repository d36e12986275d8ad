"""Collapses made on purpose raise the alarm in time; the healthy runs are those of `tests/methods/test_learning.py`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import rig
import torch
from promises import Promises
from torch import nn

from selfsight.methods import swav
from selfsight.recipes.recipe import Recipe


class Collapse(NamedTuple):
    """A recipe without what holds it up: which alarms may name it, and after how many updates of 64 at the latest."""

    recipe: str
    spoil: Callable[[Recipe, pytest.MonkeyPatch], Recipe]
    alarms: set[str]
    within: int


def without_predictor(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(recipe.method, "predictor", nn.Identity())
    return recipe


def without_centring(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(recipe.method.centre, "move_", lambda: None)
    return recipe


def without_balance(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    def unbalanced(scores: torch.Tensor, *, epsilon: float, **_: Any) -> torch.Tensor:
        return (scores / epsilon).softmax(dim=-1)

    monkeypatch.setattr(swav, "sinkhorn", unbalanced)
    return recipe


def at_rate(factor: float) -> Callable[[Recipe, pytest.MonkeyPatch], Recipe]:
    def spoil(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
        specs = {
            name: replace(spec, lr=spec.lr.with_peak(factor * spec.lr.peak)) for name, spec in recipe.optimisers.items()
        }
        return replace(recipe, optimisers=specs)

    return spoil


COLLAPSES = {
    "BYOL without its predictor": Collapse("byol", without_predictor, {"feature_collapse"}, 120),
    "SimSiam without its predictor": Collapse("simsiam", without_predictor, {"projection_collapse"}, 140),
    "DINO without centring": Collapse("dino", without_centring, {"teacher_peaked"}, 60),
    "SwAV without Sinkhorn": Collapse("swav", without_balance, {"dead_prototypes", "feature_collapse"}, 40),
    "SwAV at a hundred times its rate": Collapse("swav", at_rate(100.0), {"feature_collapse"}, 60),
}


@pytest.mark.trust
@pytest.mark.parametrize("what", COLLAPSES)
def test_a_collapse_is_named_while_it_happens(what: str, promise: Promises, monkeypatch: pytest.MonkeyPatch) -> None:
    made = COLLAPSES[what]
    recipe = made.spoil(rig.build(made.recipe), monkeypatch)
    watch = rig.Watch()
    rig.train(recipe, rig.batches(recipe, made.within), steps=160, see=watch)
    named = promise("a collapse is named by its own alarm within the stated number of updates")
    named(bool(made.alarms & {name for _, name in watch.alarms}), f"{what}: {watch.alarms}")
