"""dVAE's recipe against DALL-E's appendix."""

import pytest
import torch
from paper_size import at, one_step, rendered
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.recipes.dvae import dvae
from selfsight.recipes.recipe import Setting


def setting(size: int, name: str = "dalle_nano", **options: int) -> Setting:
    encoder = build_encoder(name, image_size=size, groups=4 if size > 96 else 3)
    return Setting(encoder=encoder, image_size=size, samples=10**6, **options)  # type: ignore[arg-type]


def test_the_papers_column() -> None:
    recipe = dvae(setting(224))
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimiser.param_groups[0]["eps"] == 1e-8
    assert (recipe.batch_size, recipe.epochs) == (512, 1200)
    assert pytest.approx(3e6, rel=0.01) == 1200 * 1_281_167 / 512

    def during(updates: float) -> tuple[float, float, float]:
        now = at(updates / 3e6 * 1200, 1200, 512)
        return spec.lr(now), method.temperature(now), method.kl_weight(now)

    assert during(0) == pytest.approx((1e-4, 1.0, 0.0))
    assert during(5_000)[2] == pytest.approx(6.6)
    assert during(2_500)[2] == pytest.approx(3.3, rel=0.01)
    assert during(75_000)[1] == pytest.approx((1 + 1 / 16) / 2, rel=0.01)
    assert during(150_000)[1] == pytest.approx(1 / 16)
    assert during(600_000)[0] == pytest.approx((1e-4 + 1.25e-6) / 2, rel=0.01)
    assert during(1_200_000) == pytest.approx((1.25e-6, 1 / 16, 6.6))
    assert during(2_900_000) == pytest.approx((1.25e-6, 1 / 16, 6.6))
    assert spec.weight_decay(at(10, 1200, 512)) == 1e-4
    assert spec.groups("online.model.blocks.input.bias", nn.Parameter(torch.ones(2))).decay
    assert method.momentum == 0.999
    assert method.head.codes == 8192
    (view,) = recipe.views.views
    assert (view.size, view.ratio, view.flip, view.normalise) == (224, (1.0, 1.0), 0.5, None)
    assert view.scale == pytest.approx(((8 / 9) ** 2, 1.0))


def test_the_small_image_column() -> None:
    recipe = dvae(setting(32))
    now = at(0, 200, 256, samples=50_000)
    assert (recipe.batch_size, recipe.epochs) == (256, 200)
    assert recipe.method.head.codes == 512
    assert (recipe.optimisers["main"].lr(now), recipe.method.kl_weight(now)) == pytest.approx((1e-3, 0.0))
    assert recipe.method.kl_weight(at(1, 200, 256, samples=50_000)) == pytest.approx(6.6)
    batch = rendered(recipe)
    assert recipe.method.codes(batch.x).shape == (2, 8, 8)


def test_any_encoder_with_a_map() -> None:
    encoder = build_encoder("tiny_cnn", image_size=32)
    method = dvae(Setting(encoder=encoder, image_size=32, samples=100), codes=8).method
    batch = rendered(dvae(Setting(encoder=encoder, image_size=32, samples=100), codes=8))
    assert method.reconstruct(batch).reconstruction.shape == (2, 3, 32, 32)


def test_other_channels_than_three() -> None:
    encoder = build_encoder("dalle_nano", image_size=16, channels=5, hidden=8)
    method = dvae(Setting(encoder=encoder, image_size=16, channels=5, samples=100), codes=8).method
    assert method.online_decoder.output.out_channels == 10


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="--kl-weight must be 0 or greater"):
        dvae(setting(32), kl_weight=-1.0)
    with pytest.raises(ValueError, match="--codes must be greater than 0"):
        dvae(setting(32), codes=-8)
    with pytest.raises(ValueError, match="--momentum must be"):
        dvae(setting(32), momentum=1.0)


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """The published networks and 8192 codes, at batch 2 of 128 pixels."""
    torch.manual_seed(0)
    encoder = build_encoder("dalle", image_size=128)
    recipe = dvae(Setting(encoder=encoder, image_size=128, samples=1_281_167))
    assert sum(p.numel() for p in recipe.method.online.parameters()) == 37_000_832
    loss, moved = one_step(recipe, rendered(recipe), epoch=100.0)
    assert -2 < loss < 5
    assert 0 < moved < 1e-2
