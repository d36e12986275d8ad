"""The recipe of learning to count against sheet 5."""

import pytest
import torch
from paper_size import IMAGENET, Width, one_step, rendered, scopes, small
from torch import nn
from torch.optim import SGD, Adam

from selfsight.encoders.build import build_encoder
from selfsight.encoders.norms import LayerNorm
from selfsight.method import Clock
from selfsight.recipes.catalogue import card
from selfsight.recipes.counting import counting
from selfsight.recipes.recipe import Recipe, Setting
from selfsight.views.tiled import KERNELS


def head(recipe: Recipe) -> list[str]:
    layers = recipe.method.head.children()
    return [f"{m.in_features}-{m.out_features}" if isinstance(m, nn.Linear) else type(m).__name__ for m in layers]


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ResNet-50 with layer norm at 224 pixels, at batch 2 and so 2 wholes and 8 tiles of 112 pixels."""
    facts = card("counting")
    torch.manual_seed(0)
    encoder = build_encoder(facts.encoder, image_size=224, norm=facts.norm)
    recipe = counting(Setting(encoder=encoder, image_size=224, samples=IMAGENET))
    assert head(recipe) == ["2048-4096", "ReLU", "4096-4096", "ReLU", "4096-1000", "ReLU"]
    assert recipe.method.margin == 10
    assert scopes(recipe.method) == set()  # no batch norm anywhere
    assert any(isinstance(m, LayerNorm) for m in encoder.modules())
    batch = rendered(recipe)
    assert (batch.whole.shape, batch.tiles.shape) == ((2, 3, 112, 112), (2, 4, 3, 112, 112))
    loss, moved = one_step(recipe, batch, epoch=0)
    assert 10 < loss < 40  # the margin, and what too many counts cost: four tiles count four times as much as a whole
    assert moved > 0


@pytest.mark.parametrize(("size", "batch", "epochs", "hidden"), [(224, 256, 70, 4096), (32, 128, 200, 1024)])
def test_resolved_values(size: int, batch: int, epochs: int, hidden: int) -> None:
    recipe = counting(Setting(encoder=Width(64), image_size=size, samples=IMAGENET))
    assert (recipe.batch_size, recipe.epochs) == (batch, epochs)
    assert head(recipe)[0] == f"64-{hidden}"
    spec = recipe.optimisers["main"]
    build = getattr(spec.build, "func", spec.build)
    if size == 224:
        assert (build, spec.build.keywords, spec.weight_decay.peak, spec.clip) == (SGD, {"momentum": 0.9}, 5e-4, None)
    else:
        assert (build, spec.weight_decay.peak, spec.clip) == (Adam, 0, 20)
    found = [spec.lr(Clock(step=k, steps=350_000, epoch=0, epochs=70)) for k in (0, 9_999, 10_000, 345_000)]
    assert found == pytest.approx([1e-4, 1e-4, 0.9e-4, 0.9**34 * 1e-4])


@pytest.mark.parametrize("size", [32, 64, 96, 128, 224])
def test_a_crop_of_seven_eighths_and_tiles_of_half_of_it(size: int) -> None:
    views = counting(Setting(encoder=Width(64), image_size=size, samples=100)).views
    (view,) = views.views
    assert (view.size, view.ratio, view.grey, view.padding) == (size, (1, 1), 0, 0)
    assert view.scale[0] ** 0.5 * 256 == pytest.approx(224)
    assert (views.grey, views.kernels) == (0.67, KERNELS)
    assert rendered(counting(Setting(encoder=Width(8), image_size=size, samples=100))).tiles.shape[-1] == size // 2


def test_flags() -> None:
    recipe = counting(small(batch_size=8, epochs=3), units=50, hidden=20, margin=4.0, grey=0.0)
    assert (recipe.batch_size, recipe.epochs, recipe.method.margin, recipe.views.grey) == (8, 3, 4, 0)
    assert head(recipe)[-4:] == ["20-20", "ReLU", "20-50", "ReLU"]
    with pytest.raises(ValueError, match="--margin must be greater than 0"):
        counting(small(), margin=0)


def test_a_transformer_counts_where_its_patches_divide_a_tile() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=48, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    recipe = counting(Setting(encoder=encoder, image_size=48, samples=100), units=8, hidden=8)
    loss, moved = one_step(recipe, rendered(recipe, 4), epoch=0)
    assert 0 < loss < 12
    assert moved > 0
    odd = build_encoder("vit_tiny_patch16_224", image_size=40, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="take a multiple of 16 as --image-size"):
        counting(Setting(encoder=odd, image_size=40, samples=100))


def test_an_encoder_that_takes_no_tiles_is_refused_at_once() -> None:
    fixed = build_encoder("beit_base_patch16_224", image_size=48, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="does not encode patches of 24 px; use a convolutional --backbone"):
        counting(Setting(encoder=fixed, image_size=48, samples=100))
