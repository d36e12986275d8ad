"""ConvMAE's recipe against its sheet."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from paper_size import one_step, rendered
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.method import Clock
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.convmae import convmae
from selfsight.recipes.recipe import Setting

SHALLOW: dict[str, Any] = {"widths": (8, 12, 16), "depths": (1, 1, 1), "heads": 2}


def setting(size: int, **options: Any) -> Setting:
    torch.manual_seed(0)
    encoder = build_encoder("convvit_base", image_size=size, **{**SHALLOW, **options})
    return Setting(encoder=encoder, image_size=size, samples=10**6)


def clock(epoch: int, epochs: int) -> Clock:
    return Clock(step=1000 * epoch, steps=1000 * epochs, epoch=min(epoch, epochs - 1), epochs=epochs)


def test_the_papers_column() -> None:
    recipe = convmae(setting(224))
    spec, method = recipe.optimisers["main"], recipe.method
    assert spec.build.func is AdamW
    assert spec.build.keywords == {"betas": (0.9, 0.95)}
    assert (recipe.batch_size, recipe.epochs) == (3072, 1600)
    assert [spec.lr(clock(epoch, 1600)) for epoch in (0, 40, 1600)] == pytest.approx([0, 1.8e-3, 0])
    assert spec.weight_decay(clock(800, 1600)) == 0.05
    assert spec.clip is None
    assert method.normalise_target
    assert (len(method.decoder.blocks), method.decoder.embed.out_features) == (8, 512)
    assert method.decoder.blocks[0].attn.num_heads == 16
    assert method.decoder.predict.out_features == 768
    assert [(b.kernel_size, b.stride, b.out_channels) for b in method.fusion.bring] == [
        ((4, 4), (4, 4), 16),
        ((2, 2), (2, 2), 16),
    ]
    batch = rendered(recipe)
    assert (batch.visible.shape, batch.masked.shape) == ((2, 49), (2, 147))
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.interpolation, view.flip) == (224, (0.2, 1.0), "bicubic", 0.5)


def test_positions_are_fixed_and_nothing_else() -> None:
    at = setting(224)
    before = {name: p.clone() for name, p in at.encoder.named_parameters()}  # type: ignore[attr-defined]
    method = convmae(at).method
    assert torch.equal(method.encoder.model.pos_embed[0], sincos_2d(16, 14, 14))
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.model.pos_embed"}
    after = dict(at.encoder.named_parameters())  # type: ignore[attr-defined]
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"model.pos_embed"}


def test_an_encoder_that_was_trained_before_is_kept() -> None:
    at = replace(setting(32), begun=True)
    model: Any = at.encoder.model  # type: ignore[attr-defined]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    convmae(at)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert model.pos_embed.requires_grad


def test_the_small_image_column() -> None:
    at = setting(32)
    recipe = convmae(at)
    lr = recipe.optimisers["main"].lr
    assert (recipe.batch_size, recipe.epochs) == (256, 1000)
    assert [lr(clock(epoch, 1000)) for epoch in (0, 10, 1000)] == pytest.approx([3e-5, 2e-4, 0])
    assert (at.encoder.patch, recipe.method.decoder.embed.out_features) == (4, 16)  # type: ignore[attr-defined]
    assert len(recipe.method.decoder.blocks) == 4
    (view,) = recipe.views.views
    assert (view.size, view.scale) == (32, (0.08, 1.0))


def test_other_patches_and_channels() -> None:
    method = convmae(setting(64, patch_size=8)).method
    assert method.decoder.predict.out_features == 8 * 8 * 3
    encoder = build_encoder("convvit_tiny", image_size=32, channels=5, **SHALLOW)
    at = Setting(encoder=encoder, image_size=32, channels=5, samples=1000)
    assert convmae(at).method.decoder.predict.out_features == 4 * 4 * 5


def test_other_encoders_are_refused_in_one_line() -> None:
    encoder = build_encoder("small_cnn", image_size=32)
    with pytest.raises(ValueError, match="convmae needs ConvMAE's own encoder, not small_cnn; try --backbone convvit"):
        convmae(Setting(encoder=encoder, image_size=32, samples=1000))


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """The base model at 224 pixels with the whole decoder, at batch 2."""
    torch.manual_seed(0)
    encoder = build_encoder("convvit_base", image_size=224)
    recipe = convmae(Setting(encoder=encoder, image_size=224, samples=1_281_167))
    loss, moved = one_step(recipe, rendered(recipe), epoch=40.0)
    assert 0.9 < loss < 3.0  # a zero prediction costs 0.9987
    assert moved > 0
