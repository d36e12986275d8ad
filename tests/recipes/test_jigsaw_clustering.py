"""The recipe of jigsaw clustering against sheet 7."""

import math

import pytest
import torch
from paper_size import IMAGENET, at, large, layers, one_step, rendered, scopes, small
from torch import nn
from torch.optim import SGD

from selfsight.encoders.build import build_encoder
from selfsight.errors import UserError
from selfsight.flags import Flags
from selfsight.parts.montage import DRAWS
from selfsight.recipes.assembly import assemble
from selfsight.recipes.jigsaw_clustering import jigsaw_clustering
from selfsight.recipes.recipe import Recipe, Setting
from selfsight.views.view import Blur, Jitter


def checked(recipe: Recipe) -> None:
    """What is the same at every size."""
    method, spec = recipe.method, recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    rates = [spec.lr(at(epoch, 200, 256)) for epoch in (0, 50, 100, 200)]
    assert rates == pytest.approx([0.03, 0.015 * (1 + 2**-0.5), 0.015, 0], abs=1e-7)
    assert spec.weight_decay.peak == 1e-4
    assert spec.groups("bias", nn.Parameter(torch.ones(2))).decay
    assert method.loss.keywords == {"temperature": 0.3, "base_temperature": 0.07}
    assert (method.cluster_weight, method.location_weight) == (1, 1)
    (piece,) = recipe.views.views
    assert (piece.scale, piece.flip, piece.grey) == ((0.2, 1.0), 0.5, 0.2)
    assert piece.jitter == Jitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    assert (recipe.views.cross, recipe.views.shuffle) == (0.3, DRAWS)


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    recipe = jigsaw_clustering(large())
    checked(recipe)
    assert recipe.views.views[0].size == 112
    assert recipe.views.views[0].blur == Blur(0.5)
    assert recipe.views.plain.size == 224
    assert layers(recipe.method.projector) == ["2048-2048+b", "ReLU", "2048-128+b"]
    assert (recipe.method.locator.in_features, recipe.method.locator.out_features) == (2048, 4)
    assert scopes(recipe.method) == {"all"}
    batch = rendered(recipe, 4)
    assert batch.x.shape == (4, 4, 3, 112, 112)
    loss, moved = one_step(recipe, batch, epoch=0)
    assert loss == pytest.approx(0.3 / 0.07 * math.log(15) + math.log(4), abs=3)
    assert moved > 0


def test_small_images_go_without_blur() -> None:
    recipe = jigsaw_clustering(small())
    checked(recipe)
    assert (recipe.views.views[0].size, recipe.views.views[0].blur) == (16, None)
    assert recipe.views.plain.size == 32


def test_the_rate_scales_with_the_batch() -> None:
    assert jigsaw_clustering(small(batch_size=64)).optimisers["main"].lr.peak == pytest.approx(0.0075)


def test_flags() -> None:
    recipe = jigsaw_clustering(
        small(epochs=3),
        projection=32,
        temperature=0.1,
        base_temperature=0.1,
        cluster_weight=2.0,
        location_weight=0.5,
        cross=0.1,
    )
    method = recipe.method
    assert recipe.epochs == 3
    assert method.projector[-1].out_features == 32
    assert method.loss.keywords == {"temperature": 0.1, "base_temperature": 0.1}
    assert (method.cluster_weight, method.location_weight, recipe.views.cross) == (2.0, 0.5, 0.1)
    with pytest.raises(ValueError, match="--temperature must be greater than 0"):
        jigsaw_clustering(small(), temperature=0.0)


def test_a_transformer_takes_montages_whose_pieces_are_whole_patches() -> None:
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=48, **options)
    recipe = jigsaw_clustering(Setting(encoder=encoder, image_size=48, samples=IMAGENET), projection=8)
    assert encoder.model.global_pool == "avg"  # type: ignore[union-attr]  # no loss reads the class token
    loss, moved = one_step(recipe, rendered(recipe, 4), epoch=0)
    assert loss > 0
    assert moved > 0
    odd = build_encoder("vit_tiny_patch16_224", image_size=40, **options)
    with pytest.raises(ValueError, match="take a multiple of 16 from 16 on as --image-size"):
        jigsaw_clustering(Setting(encoder=odd, image_size=40, samples=IMAGENET))
    with pytest.raises(ValueError, match="a montage of 33 px has no four quarters"):
        jigsaw_clustering(small(image_size=33))


def test_few_images_get_a_batch_that_can_be_compared() -> None:
    made = assemble("jigsaw_clustering", Flags(backbone="tiny_cnn"), {}, samples=20, native=(3, 32, 32))
    assert made.recipe.batch_size == 4
    with pytest.raises(UserError, match="compares 4 images at a time on each device; a batch of 4 over 1 devices x 2"):
        assemble(
            "jigsaw_clustering",
            Flags(backbone="tiny_cnn", batch_size=4, accumulate=2),
            {},
            samples=20,
            native=(3, 32, 32),
        )
