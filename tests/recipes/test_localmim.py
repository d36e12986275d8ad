"""LocalMIM's recipes against their sheet."""

from typing import Any

import pytest
import torch
from paper_size import IMAGENET, at, one_step, rendered
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.recipes import catalogue
from selfsight.recipes.localmim import localmim, localmim_swin
from selfsight.recipes.recipe import Setting

SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "drop_path_rate": 0.0}


def vit(size: int, patch: int = 16, depth: int = 12) -> nn.Module:
    return build_encoder(
        "vit_tiny_patch16_224", image_size=size, patch_size=patch, embed_dim=64, depth=depth, num_heads=2
    )


def swin(size: int, **options: Any) -> nn.Module:
    return build_encoder("swin_base_patch4_window7_224", image_size=size, **{**SWIN, **options})


def setting(encoder: nn.Module, size: int, **options: int) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=IMAGENET, **options)  # type: ignore[arg-type]


def test_the_papers_vit_column() -> None:
    recipe = localmim(setting(vit(224), 224))
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert (optimiser.param_groups[0]["betas"], optimiser.param_groups[0]["eps"]) == ((0.9, 0.95), 1e-8)
    assert (recipe.batch_size, recipe.epochs, spec.clip) == (2048, 1600, None)
    assert [spec.lr(at(epoch, 1600, 2048)) for epoch in (0, 40, 1600)] == pytest.approx([0, 1.6e-3, 1e-6])
    assert spec.weight_decay(at(800, 1600, 2048)) == 0.05
    assert (method.layers, method.cells) == ((2, 4, 10, 12), (4, 8, 16, 32))
    assert (method.target, method.bins, method.offset) == ("hog", 9, None)
    heads = ("ConvTranspose2d", "ConvTranspose2d", "Conv2d", "AvgPool2d")
    for decoder, first in zip(method.decoders, heads, strict=True):
        assert (decoder.tokens.embed.out_features, decoder.tokens.blocks[0].attn.num_heads) == (256, 8)
        assert type(decoder.head[0]).__name__ == first
        assert decoder.head[-1].out_channels == 27
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.interpolation, view.flip) == (224, (0.2, 1.0), "bicubic", 0.5)
    batch = rendered(recipe)
    assert (batch.visible.shape, batch.masked.shape) == ((2, 49), (2, 147))
    assert not recipe.method.encoder.model.pos_embed.requires_grad


def test_the_papers_swin_column() -> None:
    recipe = localmim_swin(setting(swin(224), 224))
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (2048, 400)
    assert [spec.lr(at(epoch, 400, 2048)) for epoch in (0, 40, 400)] == pytest.approx([0, 8e-4, 0])
    assert (method.layers, method.cells, method.bins) == ((1, 2, 3, 4), (8, 16, 32, 32), 18)
    assert method.offset.shape == (4, 2)
    assert [decoder.embed.out_features for decoder in method.decoders] == [64, 128, 128, 128]
    assert [decoder.embed.in_features for decoder in method.decoders] == [16, 32, 64, 64]
    assert {decoder.blocks[0].attn.num_heads for decoder in method.decoders} == {4}
    assert {decoder.predict.out_features for decoder in method.decoders} == {54}
    assert [decoder.positions.shape[1] for decoder in method.decoders] == [28**2, 14**2, 7**2, 7**2]
    batch = rendered(recipe)
    assert (batch.visible.shape, batch.masked.shape) == ((2, 12), (2, 37))  # the official code hides 37 of 49 too


def test_swins_tables_and_tokens_do_not_decay_but_the_vits_tokens_do() -> None:
    windowed = localmim_swin(setting(swin(224), 224))
    groups = windowed.optimisers["main"].groups
    decayed = {name: groups(name, p).decay for name, p in windowed.method.trainables()["main"]}
    assert not decayed["encoder.model.layers.0.blocks.0.attn.relative_position_bias_table"]
    assert not decayed["decoders.0.mask_token"]
    assert decayed["decoders.0.predict.weight"]
    plain = localmim(setting(vit(224), 224))
    decayed = {name: plain.optimisers["main"].groups(name, p).decay for name, p in plain.method.trainables()["main"]}
    assert decayed["decoders.0.tokens.mask_token"]
    assert decayed["encoder.model.cls_token"]
    assert not decayed["norms.0.weight"]


def test_pixels_as_targets() -> None:
    recipe = localmim(setting(vit(224), 224), target="pixels")
    assert [decoder.head[-1].out_channels for decoder in recipe.method.decoders] == [3 * c * c for c in (4, 8, 16, 32)]
    windowed = localmim_swin(setting(swin(224), 224), target="pixels", normalise_target=False)
    assert recipe.method.normalise_target
    assert not windowed.method.normalise_target
    assert [decoder.predict.out_features for decoder in windowed.method.decoders] == [192, 768, 3072, 3072]


def test_the_small_image_column() -> None:
    recipe = localmim(setting(vit(32, 4), 32))
    assert (recipe.batch_size, recipe.epochs) == (256, 1600)
    assert recipe.optimisers["main"].lr.peak == pytest.approx(2e-4)
    assert (recipe.method.layers, recipe.method.cells) == ((4, 10, 12), (2, 4, 8))
    assert recipe.method.decoders[0].tokens.embed.out_features == 64
    assert localmim(setting(vit(64, 8), 64)).method.cells == (2, 4, 8, 16)
    assert localmim(setting(vit(32, 4, depth=3), 32)).method.layers == (1, 2, 3)
    card = catalogue.card("localmim_swin")
    encoder = build_encoder(card.small_encoder, image_size=32, **card.small_options)
    windowed = localmim_swin(setting(encoder, 32)).method
    assert (windowed.layers, windowed.cells) == ((1, 2, 3), (4, 8, 8))
    assert windowed.encoder.window == 4


@pytest.mark.parametrize(
    ("patch", "cells"), [(14, (7, 14, 28)), (10, (5, 10, 20)), (6, (3, 6, 12)), (16, (4, 8, 16, 32))]
)
def test_cells_have_whole_pixels(patch: int, cells: tuple[int, ...]) -> None:
    """A quarter of 14 pixels is no cell: the histograms of four would not lie where the predictions do."""
    encoder = vit(4 * patch, patch)
    recipe = localmim(setting(encoder, 4 * patch, batch_size=2))
    assert recipe.method.cells == cells
    loss, moved = one_step(recipe, rendered(recipe))
    assert 0 < loss < 9
    assert moved > 0


def test_an_encoder_that_was_trained_before_is_kept() -> None:
    encoder = swin(32, patch_size=2, depths=(1, 1, 1), num_heads=(1, 1, 2), window_size=4)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    localmim_swin(setting(encoder, 32, begun=True))
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="localmim needs a vision transformer, not small_cnn"):
        localmim(setting(build_encoder("small_cnn", image_size=32), 32))
    with pytest.raises(ValueError, match="give localmim_swin"):
        localmim(setting(swin(32, patch_size=2, depths=(1, 1), num_heads=(1, 1)), 32))
    with pytest.raises(ValueError, match="localmim_swin needs a Swin, not vit_tiny"):
        localmim_swin(setting(vit(32, 4), 32))
    with pytest.raises(ValueError, match="taps 3 blocks, but the encoder has 2"):
        localmim(setting(vit(32, 4, depth=2), 32))
    with pytest.raises(ValueError, match="cells of 8 px do not divide an image of 36 px"):
        localmim(setting(vit(36, 4), 36))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe", "start"), [("localmim", localmim, 9), ("localmim_swin", localmim_swin, 18)])
def test_the_papers_recipes_take_a_step(name: str, recipe: Any, start: int) -> None:
    """ViT-B and Swin-B at 224 pixels with all decoders, at batch 2."""
    torch.manual_seed(0)
    card = catalogue.card(name)
    encoder = build_encoder(card.encoder, image_size=224, **card.options)
    made = recipe(setting(encoder, 224))
    loss, moved = one_step(made, rendered(made), epoch=40.0)
    assert 4 / start < loss < 8  # four times a zero prediction's, and what the untrained decoders add
    assert moved > 0
