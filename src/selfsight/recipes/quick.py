"""For ``tiny()``: an optimiser that gets somewhere within a few hundred updates."""

from dataclasses import replace

from torch.optim import AdamW

from selfsight.recipes.recipe import B, Recipe
from selfsight.schedules import constant, warmup_cosine


def quick(recipe: Recipe[B]) -> Recipe[B]:
    """The recipe with AdamW in place of the paper's optimiser, whose learning rates are made for 10,000 updates.

    Method, heads, views and batch-norm scopes stay the recipe's. With SimCLR's LARS 320 updates on the world gave 1
    point of linear accuracy over the random encoder, with this 150 gave 4.6.
    """
    specs = {
        name: replace(spec, build=AdamW, lr=warmup_cosine(2e-3, warmup_epochs=1), weight_decay=constant(1e-4))
        for name, spec in recipe.optimisers.items()
    }
    return replace(recipe, optimisers=specs)
