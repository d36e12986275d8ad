"""Learning rates of the recipes with negatives, banks, pixels and parts against their official schedules."""

from typing import Any

import pytest
from recorded import Pooled, recorded, same

from selfsight.encoders.build import build_encoder
from selfsight.method import Clock
from selfsight.recipes.adco import adco
from selfsight.recipes.align_uniform import align_uniform
from selfsight.recipes.amdim import amdim
from selfsight.recipes.flatnce import flatnce
from selfsight.recipes.instdisc import instdisc
from selfsight.recipes.invaspread import invaspread
from selfsight.recipes.pic import pic
from selfsight.recipes.pixpro import pixpro
from selfsight.recipes.recipe import Recipe, Setting

OFFICIAL = recorded("rates")
LARGE, SMALL = 224, 32


def setting(size: int, encoder: Any = None) -> Setting:
    return Setting(encoder=encoder or Pooled(), image_size=size, samples=4096)


def rates(recipe: Recipe[Any], steps: list[int], an_epoch: int) -> list[float]:
    """The main optimiser's rate at some updates."""
    total = recipe.epochs * an_epoch
    return [recipe.optimisers["main"].lr(Clock(step, total, step // an_epoch, recipe.epochs)) for step in steps]


BY_EPOCH = {
    "instdisc": lambda: instdisc(setting(LARGE), projection=4),
    "instdisc_small": lambda: instdisc(setting(SMALL), projection=4),
    "invaspread": lambda: invaspread(setting(SMALL)),
    "adco": lambda: adco(setting(LARGE), projection=4),
    "align_uniform": lambda: align_uniform(setting(LARGE), projection=4),
    "align_uniform_small": lambda: align_uniform(setting(SMALL)),
}


@pytest.mark.parametrize("name", BY_EPOCH)
def test_at_the_start_of_epochs(name: str) -> None:
    """These codes' rates stand still within an epoch; cosines here move with every update."""
    (case,), recipe = OFFICIAL[name]["cases"], BY_EPOCH[name]()
    assert recipe.epochs == case["with"]["epochs"]
    same(rates(recipe, [3 * epoch for epoch in case["at"]], 3), case["rate"])


BY_UPDATE = {
    "pixpro": lambda: pixpro(setting(LARGE), projection=4, hidden=4),
    "pic": lambda: pic(setting(LARGE), projection=4, hidden=4),
    "flatnce": lambda: flatnce(setting(LARGE), projection=4),
}


@pytest.mark.parametrize("name", BY_UPDATE)
def test_at_updates(name: str) -> None:
    (case,), recipe = OFFICIAL[name]["cases"], BY_UPDATE[name]()
    assert recipe.epochs == case["with"]["epochs"]
    same(rates(recipe, case["at"], case["with"]["an_epoch"]), case["rate"])


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_amdim(size: int) -> None:
    """The code's scheduler gets the epoch's number at the epoch's end: its falls come one epoch late."""
    (case,) = OFFICIAL["amdim" if size == LARGE else "amdim_small"]["cases"]
    recipe = amdim(setting(size, build_encoder("amdim_nano", image_size=32)))
    an_epoch = case["with"]["an_epoch"]
    assert recipe.epochs == case["with"]["epochs"]
    late = [step if step < 500 else max(step - an_epoch, 500) for step in case["at"]]
    same(rates(recipe, late, an_epoch), case["rate"])
