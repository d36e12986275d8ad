"""MoCo v3's recipe against sheet 18's table."""

import pytest
import torch
from paper_size import IMAGENET, at, large, layers, one_step, rendered, scopes, small
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.flags import Flags
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.assembly import assemble
from selfsight.recipes.moco_v3 import moco_v3
from selfsight.recipes.recipe import Setting, decay_all, skip_vectors
from selfsight.views import augment

TINY_HEADS = {"hidden": 16, "projection": 8}


def vit(size: int = 32, patch: int = 8) -> nn.Module:
    return build_encoder("vit_tiny_patch16_224", image_size=size, patch_size=patch, embed_dim=32, depth=2, num_heads=2)


def with_vit(size: int, patch: int, **options: int) -> Setting:
    return Setting(encoder=vit(size, patch), image_size=size, samples=IMAGENET, **options)


@pytest.mark.slow
def test_the_papers_vit_takes_a_step() -> None:
    """ViT-S/16 with 12 heads, at batch 2."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_small_patch16_224", image_size=224, num_heads=12)
    recipe = moco_v3(Setting(encoder=encoder, image_size=224, samples=IMAGENET))
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (300, 4096)
    assert spec.build is AdamW
    assert spec.groups is decay_all
    rates = [spec.lr(at(epoch, 300, 4096)) for epoch in (0, 20, 40, 170, 300)]
    assert rates == pytest.approx([0, 1.2e-3, 2.4e-3, 1.2e-3, 0], rel=1e-3, abs=1e-9)
    assert spec.weight_decay(at(3, 300, 4096)) == 0.1
    assert layers(method.projector) == [
        *("384-4096", "bn[wb]", "ReLU"),
        *("4096-4096", "bn[wb]", "ReLU"),
        *("4096-256", "bn[]"),
    ]
    assert layers(method.predictor) == ["256-4096", "bn[wb]", "ReLU", "4096-256", "bn[]"]
    assert method.temperature == 0.2
    momenta = [method.momentum(at(epoch, 300, 4096)) for epoch in (0, 150, 300)]
    assert momenta == pytest.approx([0.99, 0.995, 1.0], rel=1e-5)
    assert scopes(method) == {"all"}
    loss, moved = one_step(recipe, rendered(recipe))
    assert 0 < loss < 2 * (2 + 0.4 * 0.7 + 2)
    assert moved > 0


@pytest.mark.slow
def test_the_papers_resnet_takes_a_step() -> None:
    recipe = moco_v3(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 4096)
    assert (spec.build.func, spec.build.keywords) == (LARS, {"momentum": 0.9, "eta": 1e-3, "variant": "byol"})
    assert spec.groups is skip_vectors
    assert spec.lr(at(0, 1000, 4096)) == 0
    assert spec.lr(at(10, 1000, 4096)) == pytest.approx(0.3 * 16)
    assert spec.lr(at(1000, 1000, 4096)) == pytest.approx(0, abs=1e-9)
    assert spec.weight_decay(at(3, 1000, 4096)) == 1.5e-6
    assert layers(method.projector) == ["2048-4096", "bn[wb]", "ReLU", "4096-256", "bn[]"]
    assert layers(method.predictor) == ["256-4096", "bn[wb]", "ReLU", "4096-256"]
    assert method.temperature == 1.0
    assert method.momentum(at(0, 1000, 4096)) == pytest.approx(0.996)
    loss, moved = one_step(recipe)
    assert 0 < loss < 2 * 2 * (2 + 0.7)
    assert moved > 0


@pytest.mark.parametrize(
    ("epochs", "base", "decay", "m"),
    [(100, 0.6, 1e-6, 0.99), (101, 0.3, 1e-6, 0.99), (300, 0.3, 1e-6, 0.99), (1000, 0.3, 1.5e-6, 0.996)],
)
def test_a_resnets_rows_by_epochs(epochs: int, base: float, decay: float, m: float) -> None:
    recipe = moco_v3(small(image_size=224, epochs=epochs, batch_size=512), **TINY_HEADS)
    spec, start = recipe.optimisers["main"], at(0, epochs, 512)
    assert (recipe.epochs, spec.lr.peak) == (epochs, pytest.approx(2 * base))
    assert spec.weight_decay(start) == decay
    assert recipe.method.momentum(start) == pytest.approx(m)


def test_views_are_byols_pair_with_bilinear_crops() -> None:
    for setting, smallest in ((with_vit(224, 56), 0.08), (small(image_size=224), 0.2)):
        first, second = moco_v3(setting, **TINY_HEADS).views.views
        assert [(v.size, v.scale, v.interpolation) for v in (first, second)] == [(224, (smallest, 1.0), "bilinear")] * 2
        assert [v.blur.p for v in (first, second)] == [1.0, 0.1]
        assert (first.solarise, second.solarise.p) == (None, 0.2)
        assert first.jitter == augment.byol(224, view=1).jitter
    assert moco_v3(with_vit(224, 56), smallest_crop=0.5, **TINY_HEADS).views.views[1].scale == (0.5, 1.0)


def test_small_images_follow_solo_learn() -> None:
    recipe = moco_v3(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 256)
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.lr(at(0, 1000, 256, 50_000)) == pytest.approx(3e-5)
    assert spec.lr(at(10, 1000, 256, 50_000)) == pytest.approx(0.3)
    assert spec.weight_decay(at(0, 1000, 256, 50_000)) == 1e-6
    assert layers(method.projector) == ["512-4096", "bn[wb]", "ReLU", "4096-256", "bn[]"]
    assert layers(method.predictor) == ["256-4096", "bn[wb]", "ReLU", "4096-256"]
    assert method.temperature == 0.2
    assert method.momentum(at(0, 1000, 256, 50_000)) == pytest.approx(0.99)
    assert recipe.views.views == tuple(augment.small(32, kind="asymmetric", view=view) for view in (1, 2))


def test_transformers_on_small_images() -> None:
    recipe = moco_v3(with_vit(32, 8), **TINY_HEADS)
    assert (recipe.batch_size, recipe.epochs, recipe.optimisers["main"].build) == (256, 300, AdamW)
    assert [v.blur for v in recipe.views.views] == [None, None]


def test_a_new_transformer_begins_as_moco_v3s() -> None:
    torch.manual_seed(0)
    encoder = vit()
    recipe = moco_v3(Setting(encoder=encoder, image_size=32, samples=1000), **TINY_HEADS)
    model = encoder.model
    assert torch.equal(model.pos_embed[0], torch.cat([torch.zeros(1, 32), sincos_2d(32, 4, 4)]))
    largest = {
        "blocks.0.attn.qkv": (6 / (32 + 32)) ** 0.5,  # query, key and value are matrices of their own
        "blocks.1.mlp.fc1": (6 / (32 + 128)) ** 0.5,
        "patch_embed.proj": (6 / (3 * 64 + 32)) ** 0.5,
    }
    for name, bound in largest.items():
        layer = model.get_submodule(name)
        assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=0.02), name
        assert not layer.bias.any()
    assert 0 < float(model.cls_token.detach().abs().max()) < 1e-5
    trained = {name for name, _ in recipe.method.trainables()["main"]}
    assert "encoder.model.blocks.0.attn.qkv.weight" in trained
    assert not [name for name in trained if "patch_embed" in name or "pos_embed" in name]


def test_patches_may_be_trained() -> None:
    trained = dict(moco_v3(with_vit(32, 8), frozen_patches=False, **TINY_HEADS).method.trainables()["main"])
    assert "encoder.model.patch_embed.proj.weight" in trained
    assert "encoder.model.pos_embed" not in trained


def test_a_transformer_that_was_trained_before_is_kept() -> None:
    encoder = vit()
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    begun = Setting(encoder=encoder, image_size=32, samples=1000, begun=True)
    moco_v3(begun, **TINY_HEADS)
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())
    assert encoder.model.pos_embed.requires_grad
    assert not encoder.model.patch_embed.proj.weight.requires_grad
    with torch.no_grad():  # by MoCo v3 itself
        encoder.model.pos_embed.copy_(torch.cat([torch.zeros(1, 32), sincos_2d(32, 4, 4)]))
    moco_v3(begun, **TINY_HEADS)
    assert not encoder.model.pos_embed.requires_grad


def test_transformers_without_positions_are_refused_in_one_line() -> None:
    encoder = build_encoder(
        "vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, pos_embed="none"
    )
    with pytest.raises(ValueError, match="moco_v3 needs a transformer with a position"):
        moco_v3(Setting(encoder=encoder, image_size=32, samples=1000))


def test_the_default_encoder_has_the_papers_twelve_heads() -> None:
    found = assemble("moco_v3", Flags(batch_size=64), TINY_HEADS, samples=1000, native=None)
    assert found.encoder.model.blocks[0].attn.num_heads == 12
    assert found.resolved["backbone_options"] == {"num_heads": 12}
    named = assemble(
        "moco_v3", Flags(batch_size=64, backbone="resnet18", image_size=224), TINY_HEADS, samples=1000, native=None
    )
    assert "backbone_options" not in named.resolved
