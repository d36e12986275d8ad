"""Jigsaw's recipe: the paper's pixels in proportion and its layers, vissl's schedule, and both kinds of encoder."""

import math

import pytest
import torch
from paper_size import IMAGENET, Width, layers, one_step, rendered, scopes, small
from torch import nn
from torch.optim import SGD

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.method import Clock
from selfsight.parts.permutations import maximal_hamming
from selfsight.recipes.jigsaw import jigsaw
from selfsight.recipes.recipe import Setting


def large(size: int = 224, **options: object) -> Setting:
    """The width of a ResNet-50, where the encoder is not looked at."""
    return Setting(encoder=Width(2048), image_size=size, samples=IMAGENET, **options)


@pytest.mark.parametrize(
    ("size", "cell", "tile", "spread"),
    [(255, 85, 64, 2), (224, 74, 56, 2), (96, 32, 24, 1), (64, 21, 16, 1), (32, 10, 8, 0)],
)
def test_the_papers_pixels_scale_with_the_image(size: int, cell: int, tile: int, spread: int) -> None:
    views = jigsaw(large(size), permutations=10, tile_width=8, hidden=8).views
    assert (views.cell, views.tile, views.spread) == (cell, tile, spread)


@pytest.mark.parametrize("size", [28, 48, 72, 112, 160, 192, 299, 384])
def test_tiles_of_any_size_have_room_in_their_cells(size: int) -> None:
    views = jigsaw(large(size), permutations=10, tile_width=8, hidden=8).views
    assert views.cell - views.tile - views.spread >= 1
    assert 3 * views.cell <= size


def test_the_values_for_large_images() -> None:
    recipe = jigsaw(large())
    spec, views, method = recipe.optimisers["main"], recipe.views, recipe.method
    assert (recipe.epochs, recipe.batch_size) == (105, 256)
    assert (views.grey, views.project, views.normal, views.count) == (0.3, 0.0, True, 1)
    assert (views.views[0].scale, views.views[0].flip, views.views[0].normalise) == ((1.0, 1.0), 0, None)
    assert torch.equal(views.permutations, maximal_hamming(1000))
    assert torch.equal(method.permutations, views.permutations)
    assert layers(method.reduce) == ["2048-1024+b", "bn[wb]", "ReLU"]
    assert layers(method.solve) == ["9216-4096+b", "ReLU", "Dropout", "4096-1000+b"]
    assert method.solve[2].p == 0.5
    assert scopes(method) == {"rank"}
    optimiser = build_optimiser(spec, [("w", nn.Parameter(torch.ones(2, 2))), ("b", nn.Parameter(torch.ones(2)))])
    assert isinstance(optimiser, SGD)
    assert optimiser.param_groups[0]["momentum"] == 0.9
    assert sorted(group["decay"] for group in optimiser.param_groups) == [False, True]
    assert spec.weight_decay.peak == 1e-4
    updates = IMAGENET // 256
    at = (5, 29, 30, 59, 60, 89, 90, 99, 100, 104)
    rates = [spec.lr(Clock(step=e * updates, steps=105 * updates, epoch=e, epochs=105)) for e in at]
    assert rates == pytest.approx([0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_the_values_for_small_images() -> None:
    recipe = jigsaw(small(batch_size=128))
    assert (recipe.epochs, recipe.batch_size) == (300, 128)
    assert recipe.optimisers["main"].lr.peak == pytest.approx(0.05)
    assert len(recipe.method.permutations) == 100
    assert layers(recipe.method.solve) == ["1152-1024+b", "ReLU", "Dropout", "1024-100+b"]


def test_flags() -> None:
    recipe = jigsaw(
        large(epochs=3),
        permutations=20,
        grey=0.66,
        project=0.5,
        tile=40,
        spread=1,
        puzzles=8,
        tile_width=16,
        hidden=32,
        dropout=0.0,
    )
    views = recipe.views
    assert (views.grey, views.project, views.tile, views.spread, views.count) == (0.66, 0.5, 40, 1, 8)
    assert layers(recipe.method.solve) == ["144-32+b", "ReLU", "Dropout", "32-20+b"]
    assert (recipe.epochs, recipe.method.solve[2].p) == (3, 0.0)
    with pytest.raises(ValueError, match="take a --tile of 1 to 72"):
        jigsaw(large(), tile=74, permutations=10)
    with pytest.raises(ValueError, match="--dropout is 1; it is a share of the units"):
        jigsaw(large(), dropout=1.0, permutations=10)


def test_vision_transformers_get_whole_patches_or_one_line() -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=224, **options)
    at = Setting(encoder=encoder, image_size=224, samples=100, batch_size=2)
    recipe = jigsaw(at, permutations=10, tile_width=16, hidden=32)
    assert (recipe.views.cell, recipe.views.tile) == (74, 48)
    loss, moved = one_step(recipe, rendered(recipe), epoch=20)
    assert loss == pytest.approx(math.log(10), abs=0.7)
    assert moved > 0
    coarse = build_encoder("vit_tiny_patch16_224", image_size=32, **options)
    with pytest.raises(
        ValueError, match=r"tiles of 8 px are smaller than the patches of 16 px .*; use a smaller --pat"
    ):
        jigsaw(Setting(encoder=coarse, image_size=32, samples=100))


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ResNet-50 at 224 pixels, at batch 2: 18 tiles of 56 pixels."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=224)
    recipe = jigsaw(Setting(encoder=encoder, image_size=224, samples=IMAGENET))
    loss, moved = one_step(recipe, rendered(recipe), epoch=6)
    assert loss == pytest.approx(math.log(1000), abs=0.5)
    assert moved > 0
