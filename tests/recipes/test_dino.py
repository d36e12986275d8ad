"""DINO's recipe against its sheet."""

import jaxtyping
import pytest
import torch
from paper_size import one_step, rendered
from timm.layers import DropPath
from torch import nn
from torch.optim import SGD, AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser, set_rates_
from selfsight.method import Clock
from selfsight.recipes.dino import dino
from selfsight.recipes.recipe import Recipe, Setting, skip_vectors
from selfsight.views import augment


def clock(progress: float, epochs: int) -> Clock:
    steps = 1000 * epochs
    step = round(progress * steps)
    return Clock(step=step, steps=steps, epoch=min(step // 1000, epochs - 1), epochs=epochs)


def vit(size: int, patch: int = 16) -> nn.Module:
    return build_encoder("vit_tiny_patch16_224", image_size=size, patch_size=patch, embed_dim=32, depth=3, num_heads=2)


def setting(encoder: nn.Module, size: int) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=10**6)  # type: ignore[arg-type]


def kind(recipe: Recipe) -> tuple[type, dict]:
    optimiser = build_optimiser(recipe.optimisers["main"], [("weight", nn.Parameter(torch.ones(2, 2)))])
    return type(optimiser), optimiser.param_groups[0]


def test_the_transformers_column() -> None:
    encoder = vit(224)
    recipe = dino(setting(encoder, 224))
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (512, 100)
    assert kind(recipe)[0] is AdamW
    assert spec.lr(clock(0, 100)) == 0
    assert spec.lr(clock(0.1, 100)) == pytest.approx(5e-4 * 512 / 256)
    assert spec.lr(clock(1, 100)) == pytest.approx(1e-6)
    assert [spec.weight_decay(clock(p, 100)) for p in (0, 0.5, 1)] == pytest.approx([0.04, 0.22, 0.4])
    assert (spec.clip, spec.clip_each) == (3.0, "tensor")
    assert [method.momentum(clock(p, 100)) for p in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1.0])
    assert [method.teacher_temperature(clock(p, 100)) for p in (0, 0.15, 1)] == pytest.approx([0.04] * 3)
    assert (method.student_temperature, method.centre.momentum, method.frozen_epochs) == (0.1, 0.9, 1)
    linears = [m for m in method.student_head.trunk if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [2048, 2048, 256]
    assert all(m.bias is not None for m in linears)
    assert float(linears[1].weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert sum(isinstance(m, nn.GELU) for m in method.student_head.trunk) == 2
    assert method.centre.value.shape == (65536,)
    assert len(method.student_head.last_layer) == 1
    views = recipe.views.views
    assert [(v.size, v.scale, v.interpolation) for v in views[:2]] == [(224, (0.4, 1.0), "bicubic")] * 2
    assert [(v.size, v.scale) for v in views[2:]] == [(96, (0.05, 0.4))] * 8
    assert [v.blur.p for v in views[:3]] == [1.0, 0.1, 0.5]
    assert [v.solarise is not None for v in views[:3]] == [False, True, False]


def test_drop_path_in_the_student_alone() -> None:
    method = dino(setting(vit(224), 224)).method
    rates = [
        block.drop_path1.drop_prob for block in method.student.model.blocks if hasattr(block.drop_path1, "drop_prob")
    ]
    assert rates == pytest.approx([0.05, 0.1])
    assert not any(isinstance(m, DropPath) and m.drop_prob for m in method.encoder.modules())


def test_a_higher_teacher_temperature_is_reached_in_30_epochs() -> None:
    method = dino(setting(vit(224), 224), teacher_temperature=0.07).method
    found = [method.teacher_temperature(clock(epoch / 100, 100)) for epoch in (0, 15, 30, 100)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_decay_spares_biases_and_vectors_but_not_tokens_and_gains() -> None:
    recipe = dino(setting(vit(224), 224), fixed_gain=False)
    groups = recipe.optimisers["main"].groups
    decayed = {name: groups(name, p).decay for name, p in recipe.method.trainables()["main"]}
    assert decayed["student.model.cls_token"]
    assert decayed["student.model.pos_embed"]
    assert decayed["student_head.last.parametrizations.weight.original0"]
    assert decayed["student.model.blocks.0.attn.qkv.weight"]
    assert not decayed["student.model.blocks.0.attn.qkv.bias"]
    assert not decayed["student.model.norm.weight"]


def test_the_convolutional_column() -> None:
    recipe = dino(setting(build_encoder("small_cnn", image_size=32), 224))
    spec = recipe.optimisers["main"]
    assert kind(recipe)[0] is SGD
    assert kind(recipe)[1]["momentum"] == 0.9
    assert spec.lr(clock(0.1, 100)) == pytest.approx(0.03 * 512 / 256)
    assert [spec.weight_decay(clock(p, 100)) for p in (0, 1)] == [1e-4, 1e-4]
    assert spec.clip == 3.0
    assert [v.scale for v in recipe.views.views[1:3]] == [(0.14, 1.0), (0.05, 0.14)]


@pytest.mark.parametrize("size", [32, 224])
def test_a_layer_that_was_held_joins_later(size: int) -> None:
    spec = dino(setting(build_encoder("small_cnn", image_size=32), size)).optimisers["main"]
    free, held = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = build_optimiser(spec, [("free", free), ("held", held)])
    set_rates_(optimiser, spec, clock(0.05, 100))
    for step in range(3):
        free.grad, held.grad = torch.ones(2, 2), torch.ones(2, 2) if step else None
        optimiser.step()
        assert torch.equal(held, torch.ones(2, 2)) == (step == 0)


def test_the_small_image_column() -> None:
    recipe = dino(setting(build_encoder("small_cnn", image_size=32), 32))
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (128, 200)
    assert kind(recipe)[0] is SGD
    assert [spec.lr(clock(p, 200)) for p in (0, 1)] == pytest.approx([0.06, 0.0])
    assert spec.weight_decay(clock(0, 200)) == 5e-4
    assert spec.clip is None
    assert [method.momentum(clock(p, 200)) for p in (0, 1)] == [0.99, 0.99]
    assert method.centre.value.shape == (2048,)
    assert method.frozen_epochs == 0
    assert [(v.size, v.blur) for v in recipe.views.views] == [(32, None)] * 2


def test_small_images_may_follow_solo_learn() -> None:
    """Sheet 12's other column, and scripts/pretrain/cifar/dino.yaml."""
    net = build_encoder("small_cnn", image_size=32)
    recipe = dino(setting(net, 32), cifar="solo")
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (256, 1000)
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.groups is skip_vectors
    assert [spec.lr(clock(p, 1000)) for p in (0, 0.01, 1)] == pytest.approx([3e-5, 0.3, 0])
    assert (spec.weight_decay(clock(0, 1000)), spec.clip) == (1e-6, None)
    assert [method.momentum(clock(p, 1000)) for p in (0, 1)] == pytest.approx([0.9995, 1.0])
    assert [method.teacher_temperature(clock(p, 1000)) for p in (0, 1)] == [0.07, 0.07]
    assert (method.centre.value.shape, method.frozen_epochs) == ((4096,), 1)
    linears = [m for m in method.student_head.trunk if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [2048, 2048, 256]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.student_head.trunk)
    assert recipe.views.views == tuple(augment.small(32, kind="asymmetric", view=view) for view in (1, 2))
    assert [v.scale for v in dino(setting(net, 32), cifar="solo", small_crops=1).views.views] == [
        *[(0.4, 1.0)] * 2,
        (0.05, 0.4),
    ]
    rising = dino(setting(net, 32), cifar="solo", temperature_epochs=10).method.teacher_temperature
    assert rising(clock(0, 1000)) == pytest.approx(0.04)
    assert dino(setting(vit(32, 4), 32), cifar="solo").epochs == 200  # transformers have no such column


def test_a_column_that_is_no_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user meets it, whom no type checker warns."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="--cifar is 'paper'; choose lightly or solo"):
        dino(setting(build_encoder("small_cnn", image_size=32), 32), cifar="paper")  # type: ignore[arg-type]


def test_the_rate_at_the_end_is_a_choice() -> None:
    """Sheet 12: the published ViT-S ends at 1e-5."""
    for size, encoder in ((224, vit(224)), (224, build_encoder("small_cnn", image_size=32)), (32, vit(32, 4))):
        ends = [
            dino(setting(encoder, size), end_lr=end).optimisers["main"].lr(clock(1, 100)) for end in (None, 1e-5, 0.0)
        ]
        assert ends == pytest.approx([1e-6, 1e-5, 0.0])
    net = setting(build_encoder("small_cnn", image_size=32), 32)
    assert dino(net, end_lr=1e-3).optimisers["main"].lr(clock(1, 200)) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="--end-lr must be 0 or greater, not -1"):
        dino(net, end_lr=-1.0)


def test_a_transformer_on_small_images() -> None:
    recipe = dino(setting(vit(32, 4), 32), small_crops=3)
    assert kind(recipe)[0] is AdamW
    assert recipe.batch_size == 256
    assert recipe.method.centre.value.shape == (4096,)
    assert [v.size for v in recipe.views.views] == [32, 32, 12, 12, 12]  # multiples of the patch


def test_the_teachers_temperature_rises_as_long_as_asked() -> None:
    method = dino(setting(vit(224), 224), teacher_temperature=0.07, temperature_epochs=50).method
    found = [method.teacher_temperature(clock(epoch / 100, 100)) for epoch in (0, 25, 50, 100)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_one_boundary_parts_large_crops_from_small_ones() -> None:
    views = dino(setting(vit(224), 224), crop_boundary=0.25, small_crops=10).views.views  # the 800 epochs of ViT-S
    assert [v.scale for v in views] == [(0.25, 1.0)] * 2 + [(0.05, 0.25)] * 10
    assert [v.scale for v in dino(setting(vit(224), 224), small_crops=0).views.views] == [(0.14, 1.0)] * 2


def test_clipping_may_be_left_out() -> None:
    net = build_encoder("small_cnn", image_size=32)
    clips = [dino(setting(vit(32, 4), 32), clip=c).optimisers["main"].clip for c in (None, 0.0, 0.3)]
    assert clips == [3.0, None, 0.3]
    spec = dino(setting(net, 32), clip=1.0).optimisers["main"]
    assert (spec.clip, spec.clip_each) == (1.0, "tensor")
    with pytest.raises(ValueError, match="--clip must be 0, for none, or greater, not -1"):
        dino(setting(net, 32), clip=-1.0)


@pytest.mark.parametrize(("size", "layers"), [(32, 2), (224, 3)])
def test_batch_norm_in_the_head_is_a_choice(size: int, layers: int) -> None:
    net = build_encoder("small_cnn", image_size=32)
    usual, with_norm, without = (
        dino(setting(net, size), outputs=16, head_norm=norm).method.student_head.trunk for norm in (None, True, False)
    )

    def norms(trunk: nn.Module) -> int:
        return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in trunk)

    assert [norms(trunk) for trunk in (with_norm, without)] == [layers - 1, 0]
    assert norms(usual) == (layers - 1 if size == 32 else 0)
    hidden = [m for m in without if isinstance(m, nn.Linear)][:-1]
    assert all(m.bias is not None for m in hidden)
    assert all(m.bias is None for m in [m for m in with_norm if isinstance(m, nn.Linear)][:-1])


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ViT-S/16, 2 x 224 + 8 x 96 pixels, 65536 outputs, at batch 2."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_small_patch16_224", image_size=224)
    recipe = dino(Setting(encoder=encoder, image_size=224, samples=1_281_167))
    loss, moved = one_step(recipe, rendered(recipe), epoch=10.0)
    assert 10.5 < loss < 12.5  # log 65536 is 11.09
    assert moved > 0
