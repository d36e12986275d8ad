"""QB-Heat's recipe against sheet 6, and MAE's settings where the paper's are not known."""

import pytest
import torch
from paper_size import IMAGENET, at, one_step, rendered, scopes
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.recipes.qb_heat import qb_heat
from selfsight.recipes.recipe import Setting


def setting(size: int = 32, **options: int) -> Setting:
    torch.manual_seed(0)
    encoder = build_encoder("tiny_cnn", image_size=size, channels=options.get("channels", 3))
    return Setting(**{"encoder": encoder, "image_size": size, "samples": IMAGENET, **options})  # type: ignore[arg-type]


def test_large_images() -> None:
    recipe = qb_heat(setting(224))
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.95)
    assert (recipe.batch_size, recipe.epochs, spec.clip) == (4096, 300, None)
    assert spec.lr(at(0, 300, 4096)) == 0
    assert spec.lr(at(30, 300, 4096)) == pytest.approx(2.4e-3, rel=0.01)  # a tenth of 300 epochs, not 40
    assert spec.lr(at(300, 300, 4096)) == pytest.approx(0)
    assert spec.weight_decay(at(9, 300, 4096)) == 0.05
    assert (len(method.decoder.blocks), method.decoder.embed.out_features) == (4, 512)
    assert method.decoder.blocks[0].attn.num_heads == 16
    assert method.normalise_target
    assert method.extrapolation.across.shape == method.extrapolation.down.shape == (2, 128, 128)
    assert not any(p.any() for p in method.extrapolation.parameters())
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.interpolation, view.flip) == (224, (0.2, 1.0), "bicubic", 0.5)
    assert (method.patch, method.hidden.shape) == (8, (4, 3 * 14 * 14))
    assert scopes(method) == {"all"}


def test_small_images() -> None:
    """CIFAR-10: 16 of 32 pixels are seen, a stride of 8 leaves 2 x 2 places of them and 4 x 4 of the image."""
    recipe = qb_heat(setting(samples=50_000))
    lr, method = recipe.optimisers["main"].lr, recipe.method
    assert (recipe.batch_size, recipe.epochs) == (256, 1000)
    assert [lr(at(epoch, 1000, 256, 50_000)) for epoch in (0, 10, 1000)] == pytest.approx([3e-5, 2e-4, 0], abs=1e-9)
    assert (len(method.decoder.blocks), method.decoder.embed.out_features) == (2, 256)
    assert (method.patch, method.decoder.predict.out_features, method.hidden.shape) == (8, 192, (4, 12))
    assert recipe.views.views[0].scale == (0.08, 1.0)


def test_patches_follow_the_encoders_map() -> None:
    """ResNets round 112 / 32 up, so a quarter of 224 px has 4 places along a side and the image 8."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=224)
    method = qb_heat(Setting(encoder=encoder, image_size=224, samples=100)).method
    assert (method.patch, method.hidden.shape[1]) == (28, 48)
    with pytest.raises(ValueError, match="a quarter of 60 px 8 places along a side, which make no whole patches"):
        qb_heat(setting(120))
    with pytest.raises(ValueError, match="an image of 31 px has no quarters"):
        qb_heat(setting()).method and qb_heat(Setting(encoder=setting().encoder, image_size=31, samples=9))


def test_flags() -> None:
    recipe = qb_heat(setting(channels=5), own_diagonal=True, normalise_target=False, decoder_width=64, decoder_depth=3)
    method = recipe.method
    assert method.extrapolation.diagonal.shape == (4, 128, 128)
    assert not method.normalise_target
    assert (len(method.decoder.blocks), method.decoder.embed.out_features) == (3, 64)
    assert method.decoder.predict.out_features == 8 * 8 * 5
    with pytest.raises(ValueError, match="--decoder-depth must be greater than 0"):
        qb_heat(setting(), decoder_depth=0)


def test_a_transformer_will_do() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=2)
    recipe = qb_heat(Setting(encoder=encoder, image_size=32, samples=100), decoder_width=32, decoder_depth=1)
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss > 0
    assert moved > 0


@pytest.mark.slow
def test_the_recipe_takes_a_step_at_its_size() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=224)
    recipe = qb_heat(Setting(encoder=encoder, image_size=224, samples=IMAGENET))
    loss, moved = one_step(recipe, rendered(recipe), epoch=40.0)
    assert 0.9 < loss < 3.5  # a zero prediction costs 1 - 1 / 2352
    assert moved > 0
