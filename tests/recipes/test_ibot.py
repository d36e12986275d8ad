"""iBOT's recipe against its sheet and the README's command."""

import math

import pytest
import torch
from paper_size import one_step, rendered
from timm.layers import DropPath
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.method import Clock
from selfsight.recipes.ibot import ibot
from selfsight.recipes.recipe import Setting
from selfsight.views.masked_crops import CropMask


def clock(progress: float, epochs: int) -> Clock:
    steps = 1000 * epochs
    step = round(progress * steps)
    return Clock(step=step, steps=steps, epoch=min(step // 1000, epochs - 1), epochs=epochs)


def vit(size: int, patch: int = 16, width: int = 32) -> nn.Module:
    shape = {"patch_size": patch, "embed_dim": width, "depth": 3, "num_heads": 2}
    return build_encoder("vit_tiny_patch16_224", image_size=size, **shape)  # type: ignore[arg-type]


def setting(encoder: nn.Module, size: int) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=10**6)  # type: ignore[arg-type]


def test_the_readmes_command() -> None:
    recipe = ibot(setting(vit(224), 224))
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.999)
    assert (recipe.batch_size, recipe.epochs) == (1024, 800)
    assert [spec.lr(clock(p, 800)) for p in (0, 10 / 800, 1)] == pytest.approx([0, 2e-3, 1e-6])
    assert [spec.weight_decay(clock(p, 800)) for p in (0, 0.5, 1)] == pytest.approx([0.04, 0.22, 0.4])
    assert (spec.clip, spec.clip_each) == (3.0, "tensor")
    assert [method.momentum(clock(p, 800)) for p in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1.0])
    for temperature in (method.teacher_temperature, method.patch_temperature):
        found = [temperature(clock(epoch / 800, 800)) for epoch in (0, 15, 30, 800)]
        assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert (method.student_temperature, method.centre.momentum, method.patch_centre.momentum) == (0.1, 0.9, 0.9)
    assert (method.image_weight, method.patch_weight, method.frozen_epochs) == (1.0, 1.0, 1)
    linears = [m for m in method.student_head.trunk if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [2048, 2048, 256]
    assert all(m.bias is not None for m in linears)
    assert float(linears[1].weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert sum(isinstance(m, nn.GELU) for m in method.student_head.trunk) == 2
    assert method.centre.value.shape == method.patch_centre.value.shape == (8192,)
    assert len(method.student_head.last_layer) == 2  # gains too
    views = recipe.views.views
    assert [(v.size, v.scale, v.interpolation) for v in views[:2]] == [(224, (0.25, 1.0), "bicubic")] * 2
    assert [(v.size, v.scale) for v in views[2:]] == [(96, (0.05, 0.25))] * 10
    assert [v.blur.p for v in views[:3]] == [1.0, 0.1, 0.5]
    assert [v.solarise is not None for v in views[:3]] == [False, True, False]
    assert recipe.views.mask == CropMask(share=0.5, ratio=0.3, spread=0.2, shape="block")


def test_unit_gain_above_a_vit_s() -> None:
    wide = vit(224, width=768)
    assert len(ibot(setting(wide, 224)).method.student_head.last_layer) == 1
    assert len(ibot(setting(wide, 224), fixed_gain=False).method.student_head.last_layer) == 2
    assert len(ibot(setting(vit(224, width=384), 224)).method.student_head.last_layer) == 2


def test_drop_path_in_the_student_alone() -> None:
    method = ibot(setting(vit(224), 224)).method
    rates = [b.drop_path1.drop_prob for b in method.student.model.blocks if isinstance(b.drop_path1, DropPath)]
    assert rates == pytest.approx([0.05, 0.1])
    assert not any(isinstance(m, DropPath) and m.drop_prob for m in method.encoder.modules())


def test_decay_spares_biases_and_vectors_but_not_tokens_and_gains() -> None:
    recipe = ibot(setting(vit(224), 224))
    groups = recipe.optimisers["main"].groups
    decayed = {name: groups(name, p).decay for name, p in recipe.method.trainables()["main"]}
    assert decayed["mask_token"]
    assert decayed["student.model.cls_token"]
    assert decayed["student_head.last.parametrizations.weight.original0"]
    assert not decayed["student.model.blocks.0.attn.qkv.bias"]
    assert not decayed["student.model.norm.weight"]


def test_the_small_image_column() -> None:
    recipe = ibot(setting(vit(32, 4), 32))
    assert (recipe.batch_size, recipe.epochs) == (256, 200)
    assert recipe.optimisers["main"].lr(clock(0.05, 200)) == pytest.approx(5e-4)
    assert recipe.method.momentum(clock(0, 200)) == pytest.approx(0.9995)
    assert recipe.method.centre.value.shape == (4096,)
    assert [(v.size, v.scale, v.blur) for v in recipe.views.views] == [(32, (0.14, 1.0), None)] * 2
    assert recipe.views.grid == 8
    views = ibot(setting(vit(32, 4), 32), small_crops=3).views.views
    assert [(v.size, v.scale) for v in views] == [(32, (0.25, 1.0))] * 2 + [(12, (0.05, 0.25))] * 3


def test_what_may_be_chosen() -> None:
    at = setting(vit(32, 4), 32)
    mask = ibot(at, masked_share=1.0, mask_ratio=0.4, mask_spread=0.1, mask_shape="random").views.mask
    assert mask == CropMask(share=1.0, ratio=0.4, spread=0.1, shape="random")
    method = ibot(at, teacher_temperature=0.03, patch_temperature=0.05, temperature_epochs=10).method
    assert [method.teacher_temperature(clock(p, 200)) for p in (0, 1)] == pytest.approx([0.03, 0.03])
    assert [method.patch_temperature(clock(p, 200)) for p in (0, 0.05)] == pytest.approx([0.04, 0.05])
    assert not method.student_head.mixes
    trunk = ibot(at, head_norm=True).method.student_head.trunk
    assert [type(m).__name__ for m in trunk] == ["Linear", "ScopedBatchNorm", "GELU"] * 2 + ["Linear"]
    assert {m.scope for m in trunk if hasattr(m, "scope")} == {"all"}
    assert ibot(at, clip=0.0).optimisers["main"].clip is None
    assert ibot(at, end_lr=1e-5).optimisers["main"].lr(clock(1, 200)) == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="--clip must be 0 or greater, not -1"):
        ibot(at, clip=-1.0)
    with pytest.raises(ValueError, match="--patch-temperature must be greater than 0"):
        ibot(at, patch_temperature=0.0)


def test_encoders_without_patches_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="ibot needs a vision transformer, not small_cnn"):
        ibot(setting(build_encoder("small_cnn", image_size=32), 32))


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ViT-S/16, 2 x 224 + 10 x 96 pixels, 8192 outputs, at batch 2."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_small_patch16_224", image_size=224)
    recipe = ibot(Setting(encoder=encoder, image_size=224, samples=1_281_167), masked_share=1.0)
    loss, moved = one_step(recipe, rendered(recipe), epoch=10.0)
    assert loss == pytest.approx(2 * math.log(8192), abs=1.5)
    assert moved > 0
