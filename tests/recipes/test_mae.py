"""MAE's recipe against its sheet."""

import pytest
import torch
from paper_size import one_step, rendered
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.keyed import Key
from selfsight.method import Clock
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.mae import mae
from selfsight.recipes.recipe import Setting


def clock(progress: float, epochs: int) -> Clock:
    steps = 1000 * epochs
    step = round(progress * steps)
    return Clock(step=step, steps=steps, epoch=min(step // 1000, epochs - 1), epochs=epochs)


def vit(size: int, patch: int) -> nn.Module:
    return build_encoder("vit_tiny_patch16_224", image_size=size, patch_size=patch, embed_dim=64, depth=2, num_heads=2)


def setting(encoder: nn.Module, size: int, **options: int) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=10**6, **options)  # type: ignore[arg-type]


def test_the_papers_column() -> None:
    recipe = mae(setting(vit(224, 16), 224))
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimiser.param_groups[0]["eps"] == 1e-8
    assert (recipe.batch_size, recipe.epochs) == (4096, 800)
    assert spec.lr(clock(0, 800)) == 0
    assert spec.lr(clock(40 / 800, 800)) == pytest.approx(2.4e-3)
    assert spec.lr(clock(1, 800)) == pytest.approx(0)
    assert spec.weight_decay(clock(0.5, 800)) == 0.05
    assert spec.clip is None
    assert method.normalise_target
    assert len(method.decoder.blocks) == 8
    assert method.decoder.embed.out_features == 512
    assert method.decoder.blocks[0].attn.num_heads == 16
    assert method.decoder.predict.out_features == 768
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.interpolation, view.flip) == (224, (0.2, 1.0), "bicubic", 0.5)
    assert (view.jitter, view.grey, view.blur, view.solarise) == (None, 0.0, None, None)
    key = Key(0, torch.zeros(2, dtype=torch.long), torch.arange(2))
    batch = recipe.views.render(torch.zeros(2, 3, 230, 240, dtype=torch.uint8), recipe.views.plan(key), key)
    assert (batch.visible.shape, batch.masked.shape) == ((2, 49), (2, 147))
    assert not torch.equal(batch.visible[0], batch.visible[1])


def test_a_new_encoder_begins_as_maes() -> None:
    encoder = vit(224, 16)
    recipe = mae(setting(encoder, 224))
    positions = encoder.model.pos_embed
    assert torch.equal(positions[0], torch.cat([torch.zeros(1, 64), sincos_2d(64, 14, 14)]))
    assert "encoder.model.pos_embed" not in dict(recipe.method.trainables()["main"])
    assert "encoder.model.pos_embed" in recipe.method.state_dict()
    largest = float(encoder.model.blocks[0].attn.qkv.weight.detach().abs().max())
    assert largest == pytest.approx((6 / (64 + 192)) ** 0.5, rel=0.01)
    assert 0 < float(encoder.model.cls_token.detach().std()) < 0.05


def test_an_encoder_that_was_trained_before_is_kept() -> None:
    encoder = vit(32, 4)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    mae(setting(encoder, 32, begun=True))
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())
    assert encoder.model.pos_embed.requires_grad


def test_decay_spares_biases_and_norms_but_not_tokens() -> None:
    recipe = mae(setting(vit(32, 4), 32))
    groups = recipe.optimisers["main"].groups
    decayed = {name: groups(name, p).decay for name, p in recipe.method.trainables()["main"]}
    assert decayed["encoder.model.cls_token"]
    assert decayed["decoder.mask_token"]
    assert not decayed["decoder.norm.weight"]
    assert not decayed["decoder.predict.bias"]


def test_the_small_image_column() -> None:
    recipe = mae(setting(vit(32, 4), 32))
    lr = recipe.optimisers["main"].lr
    assert (recipe.batch_size, recipe.epochs) == (256, 1000)
    assert [lr(clock(epoch / 1000, 1000)) for epoch in (0, 10, 1000)] == pytest.approx([3e-5, 2e-4, 0])
    assert recipe.method.decoder.embed.out_features == 64
    assert len(recipe.method.decoder.blocks) == 4
    (view,) = recipe.views.views
    assert (view.size, view.scale) == (32, (0.08, 1.0))


def test_encoders_without_tokens_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="mae needs a vision transformer, not small_cnn"):
        mae(setting(build_encoder("small_cnn", image_size=32), 32))


def test_other_channels_than_three() -> None:
    encoder = build_encoder(
        "vit_tiny_patch16_224", image_size=32, channels=5, patch_size=8, embed_dim=64, depth=1, num_heads=2
    )
    assert mae(setting(encoder, 32, channels=5)).method.decoder.predict.out_features == 8 * 8 * 5


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ViT-B/16 at 224 pixels with the whole decoder, at batch 2."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_base_patch16_224", image_size=224)
    recipe = mae(Setting(encoder=encoder, image_size=224, samples=1_281_167))
    loss, moved = one_step(recipe, rendered(recipe), epoch=40.0)
    assert 0.9 < loss < 3.0  # a zero prediction costs 0.9987
    assert moved > 0
