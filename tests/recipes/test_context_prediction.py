"""Context prediction's recipe: the paper's pixels in proportion, mmselfsup's schedule, and both kinds of encoder."""

import math

import pytest
import torch
from paper_size import IMAGENET, Width, layers, one_step, rendered, scopes, small
from torch import nn
from torch.optim import SGD

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.method import Clock
from selfsight.recipes.context_prediction import context_prediction
from selfsight.recipes.recipe import Setting


def large(size: int = 224, **options: object) -> Setting:
    """The width of a ResNet-50, where the encoder is not looked at."""
    return Setting(encoder=Width(2048), image_size=size, samples=IMAGENET, **options)


@pytest.mark.parametrize(
    ("size", "patch", "gap", "jitter"),
    [(398, 96, 48, 7), (256, 62, 30, 5), (224, 54, 27, 4), (96, 23, 11, 2), (64, 15, 8, 1), (32, 8, 3, 1)],
)
def test_the_papers_pixels_scale_with_the_image(size: int, patch: int, gap: int, jitter: int) -> None:
    views = context_prediction(large(size), hidden=8).views
    assert (views.patch, views.gap, views.jitter) == (patch, gap, jitter)


@pytest.mark.parametrize("size", [28, 48, 72, 112, 160, 192, 299, 384])
def test_patches_of_any_size_fit_and_never_touch(size: int) -> None:
    views = context_prediction(large(size), hidden=8).views
    assert 3 * views.patch + 2 * views.gap + 2 * views.jitter <= size
    assert views.gap > 0
    assert 0.25 < views.gap / views.patch < 0.6


def test_the_values_for_large_images() -> None:
    recipe = context_prediction(large())
    spec, views = recipe.optimisers["main"], recipe.views
    assert (recipe.epochs, recipe.batch_size) == (70, 512)
    crop = views.views[0]
    assert (crop.scale, crop.ratio, crop.flip, crop.normalise) == ((0.35, 1.0), (1, 1), 0, None)
    assert crop.scale[0] == pytest.approx(398**2 / 450_000, abs=0.005)
    assert (views.colour, views.coarse, views.normal, views.which) == ("drop", 0.33, True, "centre")
    assert layers(recipe.method.head) == ["4096-4096+b", "bn[]", "ReLU", "4096-4096+b", "ReLU", "4096-8+b"]
    assert scopes(recipe.method) == {"rank"}
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, SGD)
    assert optimiser.param_groups[0]["momentum"] == 0.9
    assert spec.weight_decay.peak == 1e-4
    updates = IMAGENET // 512
    rates = [spec.lr(Clock(step=e * updates, steps=70 * updates, epoch=e, epochs=70)) for e in (5, 29, 30, 49, 50, 69)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002])
    start = [spec.lr(Clock(step=s, steps=70 * updates, epoch=0, epochs=70)) for s in (0, 5 * updates // 2)]
    assert start == pytest.approx([0.2 / (5 * updates), 0.1], rel=1e-3)


def test_the_values_for_small_images() -> None:
    recipe = context_prediction(small(batch_size=128))
    assert (recipe.epochs, recipe.batch_size) == (300, 128)
    assert recipe.optimisers["main"].lr.peak == pytest.approx(0.05)
    assert recipe.views.views[0].scale == (0.5, 1.0)
    assert recipe.method.head[0].out_features == 1024


def test_flags() -> None:
    recipe = context_prediction(
        large(epochs=3), patch=40, gap=10, jitter=2, colour="project", coarse=0, pairs="all", hidden=64
    )
    views = recipe.views
    assert (views.patch, views.gap, views.jitter, views.colour, views.coarse) == (40, 10, 2, "project", 0)
    assert (recipe.epochs, views.which, recipe.method.head[0].out_features) == (3, "all", 64)
    with pytest.raises(ValueError, match="take a smaller --patch"):
        context_prediction(large(), patch=80)
    with pytest.raises(ValueError, match="--hidden must be greater than 0"):
        context_prediction(large(), hidden=0)


def test_vision_transformers_get_whole_patches_or_one_line() -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=224, **options)
    recipe = context_prediction(Setting(encoder=encoder, image_size=224, samples=100, batch_size=2), hidden=32)
    assert (recipe.views.patch, recipe.views.gap, recipe.views.jitter) == (48, 36, 4)
    loss, moved = one_step(recipe, rendered(recipe), epoch=20)
    assert loss == pytest.approx(math.log(8), abs=0.5)
    assert moved > 0
    little = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=4, **options)
    recipe = context_prediction(Setting(encoder=little, image_size=32, samples=100, batch_size=2), hidden=32)
    assert recipe.views.patch == 8
    assert one_step(recipe, rendered(recipe), epoch=20)[1] > 0
    coarse = build_encoder("vit_tiny_patch16_224", image_size=32, **options)
    with pytest.raises(
        ValueError, match=r"tiles of 8 px are smaller than the patches of 16 px .*; use a smaller --pat"
    ):
        context_prediction(Setting(encoder=coarse, image_size=32, samples=100))


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ResNet-50 at 224 pixels, at batch 2: 18 patches of 54 pixels and 16 pairs."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=224)
    recipe = context_prediction(Setting(encoder=encoder, image_size=224, samples=IMAGENET))
    loss, moved = one_step(recipe, rendered(recipe), epoch=6)
    assert loss == pytest.approx(math.log(8), abs=0.1)
    assert moved > 0
