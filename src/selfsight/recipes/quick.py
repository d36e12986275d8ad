"""``--optimiser adamw``: what gets somewhere within a few hundred updates; and what ``tiny()`` needs besides."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import AdamW

from selfsight.recipes.recipe import B, Group, OptimiserSpec, Recipe, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views.view import View


def quick(recipe: Recipe[B]) -> Recipe[B]:
    """The recipe with AdamW in place of the paper's optimiser, whose learning rates are made for 10,000 updates.

    Method, heads, views and batch-norm scopes stay the recipe's. Its clipping, decay and groups go: they belong to the
    paper's optimiser. Vectors do not decay. What learns at the peak for all time still does (SimSiam's predictor): that
    is the method's. An optimiser that asks to be kept stays as it is.
    """
    quicker = OptimiserSpec(
        build=AdamW, lr=warmup_cosine(2e-3, warmup_epochs=1), weight_decay=constant(1e-4), groups=skip_vectors
    )
    specs = {
        name: spec if spec.keep else replace(quicker, groups=_still_fixed(spec.groups))
        for name, spec in recipe.optimisers.items()
    }
    return replace(recipe, optimisers=specs)


def _still_fixed(groups: Callable[[str, nn.Parameter], Group]) -> Callable[[str, nn.Parameter], Group]:
    def both(name: str, parameter: nn.Parameter) -> Group:
        return replace(skip_vectors(name, parameter), fixed_lr=groups(name, parameter).fixed_lr)

    return both


def on_the_world(recipe: Recipe[B], *, peak: float = 4e-3, least: float = 0.5) -> Recipe[B]:
    """``quick``, with crops for the embedded world: smaller ones often miss the object.

    Crops show at least ``least`` of an image, small ones at least half of that; what shows all of it stays.
    """
    recipe = quick(recipe)
    pipeline: Any = recipe.views
    largest = max(view.size for view in pipeline.views)

    def wider(view: View) -> View:
        if view.scale is None:
            return view
        return replace(view, scale=(least, 1.0) if view.size == largest else (least / 2, least))

    views = replace(pipeline, views=tuple(wider(view) for view in pipeline.views))
    specs = {
        name: spec if spec.keep else replace(spec, lr=spec.lr.with_peak(peak))
        for name, spec in recipe.optimisers.items()
    }
    return replace(recipe, views=views, optimisers=specs)
