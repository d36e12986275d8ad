"""MP3's recipe against its sheet and DeiT's command line."""

import math

import pytest
import torch
from paper_size import one_step, rendered
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.keyed import Key
from selfsight.method import Clock
from selfsight.recipes import catalogue
from selfsight.recipes.mp3 import mp3
from selfsight.recipes.recipe import Setting

POOLED = {"class_token": False, "global_pool": "avg"}


def clock(epoch: float, epochs: int) -> Clock:
    steps = 1000 * epochs
    step = round(epoch * 1000)
    return Clock(step=step, steps=steps, epoch=min(int(epoch), epochs - 1), epochs=epochs)


def vit(size: int, patch: int, **options: object) -> nn.Module:
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, **POOLED, **options}
    return build_encoder("vit_tiny_patch16_224", image_size=size, patch_size=patch, **shape)  # type: ignore[arg-type]


def setting(encoder: nn.Module, size: int) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=10**6)  # type: ignore[arg-type]


def test_the_papers_column() -> None:
    recipe = mp3(setting(vit(224, 16), 224))
    spec = recipe.optimisers["main"]
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.999)
    assert (recipe.batch_size, recipe.epochs) == (1024, 100)
    assert [spec.lr(clock(epoch, 100)) for epoch in (0, 5, 100)] == pytest.approx([1e-6, 1e-3, 1e-5])
    assert spec.weight_decay(clock(50, 100)) == 0.05
    assert spec.clip is None
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.interpolation, view.flip) == (224, (0.2, 1.0), "bicubic", 0.5)
    assert (view.jitter, view.grey, view.blur, view.solarise) == (None, 0.0, None, None)
    assert recipe.method.head.out_features == 196
    key = Key(0, torch.zeros(2, dtype=torch.long), torch.arange(2))
    batch = recipe.views.render(torch.zeros(2, 3, 230, 240, dtype=torch.uint8), recipe.views.plan(key), key)
    assert (batch.visible.shape, batch.masked.shape) == ((2, 49), (2, 147))


def test_the_small_image_column() -> None:
    recipe = mp3(setting(vit(32, 4), 32))
    assert (recipe.batch_size, recipe.epochs) == (256, 2000)
    assert recipe.optimisers["main"].lr(clock(5, 2000)) == pytest.approx(2.5e-4)
    assert recipe.method.head.out_features == 64
    assert recipe.views.ratio == 0.5
    assert mp3(setting(vit(32, 4), 32), mask_ratio=0.75).views.ratio == 0.75


@pytest.mark.parametrize("options", [{}, {"class_token": True, "global_pool": "token"}], ids=str)
def test_the_encoder_knows_no_position_even_if_it_was_trained_with_some(options: dict[str, object]) -> None:
    encoder = vit(32, 4, **options)
    nn.init.normal_(encoder.model.pos_embed)
    nn.init.normal_(encoder.model.norm.weight if options else encoder.model.fc_norm.weight)
    before = encoder.model.blocks[0].attn.qkv.weight.clone()
    recipe = mp3(setting(encoder, 32))
    assert not encoder.model.pos_embed.any()
    assert torch.equal(encoder.model.blocks[0].attn.qkv.weight, before)
    trained = dict(recipe.method.trainables()["main"])
    assert "encoder.model.pos_embed" not in trained
    assert "encoder.model.pos_embed" in recipe.method.state_dict()


def test_what_could_tell_a_position_is_refused() -> None:
    net = build_encoder("small_cnn", image_size=32)
    with pytest.raises(ValueError, match="mp3 needs a vision transformer, not small_cnn"):
        mp3(setting(net, 32))
    overlapping = vit(32, 4)
    overlapping.model.patch_embed.proj = nn.Conv2d(3, 32, 6, stride=4, padding=1)
    with pytest.raises(ValueError, match="needs patches that do not overlap"):
        mp3(setting(overlapping, 32))
    other = vit(32, 4)
    other.model.blocks[1] = nn.Identity()
    with pytest.raises(ValueError, match="needs plain attention, vit_tiny_patch16_224 has another"):
        mp3(setting(other, 32))
    with pytest.raises(ValueError, match="patch 4 does not divide an image of 30 px"):
        mp3(setting(vit(32, 4), 30))


def test_its_cards_encoders_have_no_class_token() -> None:
    card = catalogue.card("mp3")
    assert card.family == "masked"
    for options in (card.options, card.small_options):
        assert {name: options[name] for name in POOLED} == POOLED


def test_decay_spares_vectors() -> None:
    recipe = mp3(setting(vit(32, 4), 32))
    groups = recipe.optimisers["main"].groups
    decayed = {name: groups(name, p).decay for name, p in recipe.method.trainables()["main"]}
    assert decayed["head.weight"]
    assert not decayed["head.bias"]
    assert not decayed["encoder.model.fc_norm.weight"]


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ViT-B/16 at 224 pixels, at batch 2."""
    torch.manual_seed(0)
    card = catalogue.card("mp3")
    encoder = build_encoder(card.encoder, image_size=224, **card.options)
    recipe = mp3(Setting(encoder=encoder, image_size=224, samples=1_281_167))
    loss, moved = one_step(recipe, rendered(recipe), epoch=5.0)
    assert loss == pytest.approx(math.log(196), abs=0.4)
    assert moved > 0
