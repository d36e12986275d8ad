"""Context encoders' recipe against sheet 11's table."""

import pytest
import torch
from paper_size import IMAGENET, Width, at, one_step, rendered, scopes
from torch import nn
from torch.optim import Adam, AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.flags import Flags
from selfsight.parts.inpainting import ChannelwiseLinear
from selfsight.recipes.assembly import assemble
from selfsight.recipes.context_encoder import context_encoder
from selfsight.recipes.recipe import Recipe, Setting, decay_all


def setting(size: int = 32, **options: int) -> Setting:
    torch.manual_seed(0)
    encoder = build_encoder("tiny_cnn", image_size=size, channels=options.get("channels", 3))
    return Setting(**{"encoder": encoder, "image_size": size, "samples": 14_900, **options})  # type: ignore[arg-type]


def painted(recipe: Recipe) -> int:
    """The side of the picture that the decoder paints."""
    batch = rendered(recipe)
    return recipe.method.predict(batch.x, batch.hidden)[1].shape[-1]


def test_inpainting_is_the_codes_command() -> None:
    """README: wtl2 0.999, nBottleneck 4000, niter 500, loadSize 350, fineSize 128, overlapPred 4."""
    recipe = context_encoder(setting(128), hole="centre")
    main, adversary, method = recipe.optimisers["main"], recipe.optimisers["adversary"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (64, 500)
    for spec, rate in ((main, 2e-3), (adversary, 2e-4)):
        optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
        assert isinstance(optimiser, Adam)
        assert optimiser.param_groups[0]["betas"] == (0.5, 0.999)
        assert [spec.lr(at(epoch, 500, 64, 14_900)) for epoch in (0, 250, 500)] == [rate] * 3
        assert (spec.weight_decay(at(9, 500, 64, 14_900)), spec.clip, spec.groups) == (0, None, decay_all)
    assert (method.adversarial, method.overlap, method.overlap_weight) == (0.001, 4, 10)
    assert method.decoder[0].out_channels == 4000
    doublings = [m for m in method.decoder if isinstance(m, nn.ConvTranspose2d) and m.stride == (2, 2)]
    assert len(doublings) == 2  # from 16 places to 64 pixels
    assert method.fill.flatten().tolist() == pytest.approx([2 * v / 255 - 1 for v in (123, 117, 104)])
    (view,) = recipe.views.views
    assert (view.size, view.scale, view.ratio, view.flip) == (128, (0.1, 0.134), (1, 1), 0.5)
    shares = [128**2 / 350**2, 128**2 / (350 * 350 * 4 / 3)]  # of a square image and of one of 4:3
    assert shares == pytest.approx([0.134, 0.1], abs=1e-3)
    assert (view.jitter, view.grey, view.blur, view.solarise) == (None, 0.0, None, None)
    given = rendered(recipe)
    assert int(given.hidden[0].sum()) == 56**2
    assert float(given.x.min()) >= -1.001
    assert float(given.x.max()) <= 1.001
    assert scopes(method) == {"all"}


def test_features_are_learnt_from_regions_without_a_discriminator() -> None:
    recipe = context_encoder(setting(224, samples=IMAGENET))
    method = recipe.method
    assert set(recipe.optimisers) == {"main"}
    assert recipe.optimisers["main"].lr(at(2, 5, 64)) == 2e-4
    assert method.discriminator is None
    assert (recipe.epochs, recipe.batch_size, recipe.views.hole) == (5, 64, "region")  # 100,000 updates
    assert (method.adversarial, method.overlap, painted(recipe)) == (0, 0, 224)
    assert isinstance(method.decoder[0], ChannelwiseLinear)
    share = rendered(recipe).hidden.float().mean(dim=(1, 2))
    assert ((share >= 0.2) & (share <= 0.3)).all()
    assert context_encoder(setting(224)).epochs == 430
    assert context_encoder(setting(224, samples=1000)).epochs == 500


def test_the_codes_other_program() -> None:
    """train_random.lua with wtl2 0.999: a discriminator of the whole image."""
    recipe = context_encoder(setting(128), adversarial=0.001)
    assert recipe.optimisers["main"].lr(at(0, 430, 64, 14_900)) == 2e-3
    widths = [m.out_channels for m in recipe.method.discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64, 64, 128, 256, 512, 1]


def test_small_images() -> None:
    recipe = context_encoder(setting(), hole="centre")
    (view,) = recipe.views.views
    assert (view.size, view.scale) == (32, (0.5, 1.0))
    assert (recipe.method.overlap, painted(recipe)) == (1, 16)
    assert int(rendered(recipe).hidden[0].sum()) == 14**2
    assert context_encoder(setting(samples=50_000)).epochs == 128


def test_the_discriminators_rate_is_moved_by_no_flag() -> None:
    for given in ({"optimiser": "adamw", "lr": 4e-3}, {"lr": 0.3, "weight_decay": 0.1}):
        flags = Flags(batch_size=16, backbone="tiny_cnn", **given)
        own = {"adversarial": 0.01, "filters": 4}
        recipe = assemble("context_encoder", flags, own, samples=64, native=(3, 32, 32)).recipe
        main, adversary = recipe.optimisers["main"], recipe.optimisers["adversary"]
        assert main.lr.peak == given["lr"]
        assert (main.build is AdamW) == ("optimiser" in given)
        assert adversary.lr(at(7, 500, 16, 64)) == 2e-4


def test_flags() -> None:
    recipe = context_encoder(setting(channels=5), hole="blocks", adversarial=0.1, overlap=2, bottleneck=7, filters=3)
    method = recipe.method
    assert recipe.views.hole == "blocks"
    assert (method.adversarial, method.overlap) == (0.1, 2)
    assert method.decoder[0].out_channels == 24  # of the map's 128
    assert method.decoder[3].out_channels == 7
    assert method.decoder[-2].in_channels == 6  # of 24 channels, halved twice
    assert method.decoder[-2].out_channels == 5
    assert method.fill.flatten().tolist() == pytest.approx([2 * (123 + 117 + 104) / 765 - 1] * 5)
    for given, words in (
        ({"adversarial": 1.0}, "--adversarial is 1; it must be at least 0 and below 1"),
        ({"overlap": -1}, "--overlap is -1"),
        ({"bottleneck": -1}, "--bottleneck is -1"),
        ({"filters": 0}, "--filters must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=words):
            context_encoder(setting(), **given)


def test_any_encoder_with_a_map_will_do() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=2)
    recipe = context_encoder(Setting(encoder=encoder, image_size=32, samples=100), filters=2)
    assert encoder.model.global_pool == "avg"  # type: ignore[union-attr]  # no loss reads the class token
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss > 0
    assert moved > 0
    assert context_encoder(Setting(encoder=Width(8), image_size=32, samples=100)).method.decoder[0].weight.shape == (
        8,
        1024,
        1024,
    )


@pytest.mark.slow
def test_inpainting_takes_a_step_at_its_size() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=128)
    recipe = context_encoder(Setting(encoder=encoder, image_size=128, samples=14_900), hole="centre")
    judged, moved = one_step(recipe, rendered(recipe))
    assert 0.5 < judged < 3  # the discriminator's: undecided it is 1.386
    assert moved > 0
