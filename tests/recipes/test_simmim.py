"""SimMIM's recipes against their sheet."""

import math
from typing import Any

import pytest
import torch
from paper_size import IMAGENET, at, one_step, rendered
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.encoders.swin import Swin
from selfsight.engine.optimisers import build_optimiser
from selfsight.keyed import Key
from selfsight.parts.cells import hidden_cells
from selfsight.recipes import catalogue
from selfsight.recipes.recipe import Setting
from selfsight.recipes.simmim import simmim, simmim_swin

NARROW: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "drop_path_rate": 0.0}


def vit(size: int, **options: Any) -> nn.Module:
    return build_encoder("vit_tiny_patch16_224", image_size=size, **{**NARROW, **options})


def swin(size: int, **options: Any) -> nn.Module:
    return build_encoder("swin_base_patch4_window7_224", image_size=size, **{**SWIN, **options})


def setting(encoder: nn.Module, size: int, **options: int) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=IMAGENET, **options)  # type: ignore[arg-type]


def test_the_papers_column() -> None:
    recipe = simmim(setting(vit(224), 224))
    spec = recipe.optimisers["main"]
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimiser.param_groups[0]["eps"] == 1e-8
    assert (recipe.batch_size, recipe.epochs, spec.clip, spec.clip_each) == (2048, 800, 5.0, "all")
    assert spec.lr(at(0, 800, 2048)) < 1e-6
    assert spec.lr(at(5, 800, 2048)) == pytest.approx(2e-4, rel=1e-3)
    assert [spec.lr(at(epoch, 800, 2048)) for epoch in (10, 699, 701, 799)] == pytest.approx([4e-4, 4e-4, 4e-5, 4e-5])
    assert spec.weight_decay(at(400, 800, 2048)) == 0.05
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.interpolation, view.flip) == (224, (0.67, 1.0), "bilinear", 0.5)
    assert (view.jitter, view.grey, view.blur, view.solarise) == (None, 0.0, None, None)
    assert recipe.method.head[0].out_channels == 3 * 16**2


def test_the_papers_short_training() -> None:
    recipe = simmim_swin(setting(swin(192), 192, epochs=100))
    lr = recipe.optimisers["main"].lr
    assert lr(at(0, 100, 2048)) == pytest.approx(4e-6)
    assert lr(at(10, 100, 2048)) == pytest.approx(8e-4)
    assert lr(at(100, 100, 2048)) == pytest.approx(4e-5)


@pytest.mark.parametrize(("size", "cells", "gone"), [(192, 36, 22), (224, 49, 30)])
def test_as_many_cells_are_hidden_as_in_the_code(size: int, cells: int, gone: int) -> None:
    recipe = simmim_swin(setting(swin(size), size))
    assert recipe.method.head[0].out_channels == 3 * 32**2
    key = Key(0, torch.zeros(2, dtype=torch.long), torch.arange(2))
    images = torch.zeros(2, 3, 230, 240, dtype=torch.uint8)
    batch = recipe.views.render(images, recipe.views.plan(key), key)
    assert (batch.visible.shape, batch.masked.shape) == ((2, cells - gone), (2, gone))
    assert not torch.equal(batch.masked[0], batch.masked[1])


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_share_is_rounded_up(ratio: float) -> None:
    recipe = simmim(setting(vit(32, patch_size=4), 32), mask_ratio=ratio)
    key = Key(0, torch.zeros(1, dtype=torch.long), torch.arange(1))
    batch = recipe.views.render(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), recipe.views.plan(key), key)
    assert batch.masked.shape[1] == math.ceil(64 * ratio)


def test_windows_fit_the_map_as_at_the_papers_size() -> None:
    encoder = swin(192)
    assert isinstance(encoder, Swin)
    simmim_swin(setting(encoder, 192))
    assert encoder.window == 6


def test_decay_spares_vectors_tokens_and_tables() -> None:
    for encoder in (
        build_encoder("beit_base_patch16_224", image_size=32, patch_size=4, **NARROW),
        swin(32, patch_size=2),
        vit(32, patch_size=4),
    ):
        recipe = simmim(setting(encoder, 32))
        groups = recipe.optimisers["main"].groups
        for name, p in recipe.method.trainables()["main"]:
            spared = p.ndim <= 1 or name.endswith(("_token", "pos_embed", "bias_table"))
            assert groups(name, p).decay is not spared, name


@pytest.mark.parametrize(
    ("size", "patch", "cell"), [(32, 4, 4), (32, 2, 4), (48, 4, 4), (64, 4, 8), (64, 8, 8), (96, 4, 12)]
)
def test_the_small_image_column(size: int, patch: int, cell: int) -> None:
    recipe = simmim(setting(vit(size, patch_size=patch), size))
    assert (recipe.batch_size, recipe.epochs) == (512, 800)
    assert recipe.optimisers["main"].lr.peak == pytest.approx(1e-4)
    assert f"patches of {cell} px stay visible" in recipe.views.describe()


def distance(size: int, cell: int) -> float:
    """The mean distance from a hidden pixel to the nearest visible one, of six cells in ten hidden."""
    cells = (size // cell) ** 2
    order = torch.rand(20, cells, generator=torch.Generator().manual_seed(0)).argsort(1)
    maps = hidden_cells(order[:, : math.ceil(0.6 * cells)], cells)
    found: list[float] = []
    for gone in maps.repeat_interleave(cell, 1).repeat_interleave(cell, 2):
        apart = torch.cdist(gone.nonzero().float(), (~gone).nonzero().float())
        found.append(float(apart.min(1).values.mean()))
    return sum(found) / len(found) / size


def test_small_cells_are_as_far_from_what_is_visible_as_the_paper_wants() -> None:
    """The paper's AvgDist, best from 10 to 20 px at 192, in shares of the side."""
    assert 10 / 192 < distance(32, 4) < 20 / 192
    assert 10 / 192 < distance(64, 8) < 20 / 192
    assert distance(64, 4) < 10 / 192
    assert distance(32, 8) > 20 / 192


def test_the_vit_begins_as_in_the_code_and_swin_as_timms() -> None:
    """``models/simmim.py`` cuts what its ViT draws off at one deviation: body, patches and mask token, not the head."""
    torch.manual_seed(0)
    options: Any = {**catalogue.card("simmim").small_options, "embed_dim": 64, "depth": 2, "num_heads": 2}
    recipe = simmim(setting(build_encoder("beit_base_patch16_224", image_size=32, **options), 32))
    model: Any = recipe.method.encoder.model  # type: ignore[attr-defined]
    block = model.blocks[1]
    drawn = {"qkv": block.attn.qkv.weight, "fc1": block.mlp.fc1.weight, "patches": model.patch_embed.proj.weight}
    for name, weight in drawn.items():
        assert float(weight.detach().std()) == pytest.approx(0.0108, rel=0.05), name
    for weight in (*drawn.values(), model.cls_token, recipe.method.mask_token):
        assert 0 < float(weight.detach().abs().max()) <= 0.02
    assert float(block.attn.proj.weight.detach().abs().max()) == pytest.approx(0.02 / 2, rel=0.01)
    assert not model.patch_embed.proj.bias.any()
    assert float(recipe.method.head[0].weight.detach().std()) > 0.05
    windows = simmim_swin(setting(swin(32, patch_size=2, embed_dim=32), 32)).method
    assert float(windows.encoder.model.layers[0].blocks[0].mlp.fc1.weight.detach().std()) == pytest.approx(
        0.02, rel=0.1
    )
    assert float(windows.mask_token.detach().abs().max()) > 0.02


def test_an_encoder_that_was_trained_before_is_kept() -> None:
    encoder: Any = build_encoder("beit_base_patch16_224", image_size=32, patch_size=4, **NARROW)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    simmim(setting(encoder, 32, begun=True))
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())


def test_both_sizes_of_the_vit_have_drop_path() -> None:
    card = catalogue.card("simmim")
    assert card.options["drop_path_rate"] == card.small_options["drop_path_rate"] == 0.1


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="simmim needs a ViT, BEiT or Swin, not small_cnn"):
        simmim(setting(build_encoder("small_cnn", image_size=32), 32))
    with pytest.raises(ValueError, match="give another --mask-cell"):
        simmim(setting(vit(32, patch_size=4), 32), mask_cell=6)
    with pytest.raises(ValueError, match="--mask-ratio 0 hides 0 of 64 cells"):
        simmim(setting(vit(32, patch_size=4), 32), mask_ratio=0.0)


def test_other_channels_than_three() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, channels=5, patch_size=8, **NARROW)
    assert simmim(setting(encoder, 32, channels=5)).method.head[0].out_channels == 8 * 8 * 5


def of_the_card(name: str, size: int) -> nn.Module:
    card = catalogue.card(name)
    return build_encoder(card.encoder, image_size=size, **card.options)


@pytest.mark.slow
def test_the_papers_vit_takes_a_step() -> None:
    """ViT-B/16 at 224 pixels with its one table of positions, at batch 2."""
    torch.manual_seed(0)
    encoder: Any = of_the_card("simmim", 224)
    model = encoder.model
    assert model.pos_embed is None
    assert model.rel_pos_bias.relative_position_bias_table.shape == (27 * 27 + 3, 12)
    assert all(block.attn.relative_position_bias_table is None for block in model.blocks)
    assert float(model.blocks[0].gamma_1[0].detach()) == pytest.approx(0.1)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert sum(p.numel() for p in encoder.parameters()) == 85_665_360
    recipe = simmim(setting(encoder, 224))
    loss, moved = one_step(recipe, rendered(recipe), epoch=40.0)
    assert 0.2 < loss < 2.0
    assert moved > 0


@pytest.mark.slow
def test_the_papers_swin_takes_a_step() -> None:
    """Swin-B at 192 pixels with windows of 6, at batch 2."""
    torch.manual_seed(0)
    encoder: Any = of_the_card("simmim_swin", 192)
    recipe = simmim_swin(setting(encoder, 192))
    assert [len(stage.blocks) for stage in encoder.model.layers] == [2, 2, 18, 2]
    assert [stage.blocks[0].attn.num_heads for stage in encoder.model.layers] == [4, 8, 16, 32]
    assert encoder.model.embed_dim == 128
    assert encoder.window == 6
    assert not [m for m in encoder.modules() if type(m).__name__ == "DropPath"]
    loss, moved = one_step(recipe, rendered(recipe), epoch=40.0)
    assert 0.2 < loss < 2.0
    assert moved > 0


@pytest.mark.parametrize(
    ("size", "told"),
    [(28, "do not divide 28 px; use --image-size 32"), (40, "use --image-size 32"), (84, "do not divide 84 px")],
)
def test_sizes_that_swin_cannot_cut_evenly_are_refused(size: int, told: str) -> None:
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=size, patch_size=2)
    with pytest.raises(ValueError, match=told):
        simmim_swin(Setting(encoder=encoder, image_size=size, samples=1000))


def test_windows_of_one_patch_are_refused() -> None:
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=352)
    with pytest.raises(
        ValueError, match="no windows of 3 to 7 patches divide Swin's maps at 352 px; use --image-size 224"
    ):
        simmim_swin(Setting(encoder=encoder, image_size=352, samples=1000))
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=224, window_size=6)
    with pytest.raises(ValueError, match=r"no windows of 3 to 6 patches .* at 224 px; use --image-size 192"):
        simmim_swin(Setting(encoder=encoder, image_size=224, samples=1000))
