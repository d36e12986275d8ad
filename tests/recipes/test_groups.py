"""Which parameters decay, and which LARS adapts, in each paper's recipe."""

from collections.abc import Callable

import pytest
import torch
from paper_size import large, small
from torch import nn

from selfsight.recipes.align_uniform import align_uniform
from selfsight.recipes.barlow_twins import barlow_twins
from selfsight.recipes.byol import byol
from selfsight.recipes.dcl import dcl
from selfsight.recipes.debiased import debiased, hard_negatives
from selfsight.recipes.flatnce import flatnce
from selfsight.recipes.moco import moco_v1, moco_v2
from selfsight.recipes.recipe import Group, Recipe, Setting
from selfsight.recipes.rotation import rotation
from selfsight.recipes.simclr import simclr
from selfsight.recipes.swav import swav

WHOLE, LEFT_OUT = Group(), Group(decay=False, adapt=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "vectors"),
    [
        (simclr, LEFT_OUT),
        (byol, LEFT_OUT),
        (barlow_twins, Group(decay=False, adapt=False, lr_scale=0.0048 / 0.2)),
        (moco_v1, WHOLE),
        (moco_v2, WHOLE),
        (swav, WHOLE),
        (rotation, WHOLE),
    ],
)
def test_large_images(build: Callable[[Setting], Recipe], vectors: Group) -> None:
    assert _groups(build(large())) == (vectors, WHOLE)


@pytest.mark.parametrize(
    ("build", "vectors"),
    [
        (simclr, LEFT_OUT),
        (byol, LEFT_OUT),
        (barlow_twins, LEFT_OUT),
        (moco_v1, WHOLE),
        (moco_v2, WHOLE),
        (flatnce, LEFT_OUT),
        (dcl, WHOLE),
        (debiased, WHOLE),
        (hard_negatives, WHOLE),
        (align_uniform, WHOLE),
    ],
)
def test_small_images(build: Callable[[Setting], Recipe], vectors: Group) -> None:
    assert _groups(build(small())) == (vectors, WHOLE)


def _groups(recipe: Recipe) -> tuple[Group, Group]:
    groups = recipe.optimisers["main"].groups
    vector, matrix = (groups("layer.p", nn.Parameter(torch.ones(shape))) for shape in ((3,), (3, 3)))
    return vector, matrix
