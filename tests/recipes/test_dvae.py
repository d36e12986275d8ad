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
from selfsight.views.view import boxes


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
    assert view.scale == pytest.approx(((8 / 12) ** 2, (8 / 9) ** 2))  # listing 1; listing 2 has (8/9)^2 to 1


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
    with pytest.raises(ValueError, match="--codes must be at least 2"):
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


def test_wide_images_are_cropped_at_random_too() -> None:
    """The paper's square of 2/3 to 8/9 of the short side, anywhere."""
    (view,) = dvae(setting(224)).views.views  # type: ignore[attr-defined]
    found = boxes(view, torch.rand(64, 128, generator=torch.Generator().manual_seed(0)), 375, 500)
    assert torch.equal(found.height, found.width)
    assert 250 <= float(found.height.min()) < 260
    assert 325 < float(found.height.max()) <= 334
    assert float(found.left.max()) > 100
    assert len(found.left.unique()) > 32


def test_an_encoder_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="map of 4 places does not divide 30 px; use --image-size 32"):
        dvae(Setting(encoder=build_encoder("small_cnn", image_size=30), image_size=30, samples=1000))


def test_batch_norm_of_what_is_kept_follows_the_trained_ones() -> None:
    encoder = build_encoder("tiny_cnn", image_size=32)
    recipe = dvae(Setting(encoder=encoder, image_size=32, samples=1000, epochs=2, batch_size=8), codes=8)
    start = [b.clone() for b in recipe.method.encoder.buffers()]  # type: ignore[union-attr]
    one_step(recipe, rendered(recipe))
    kept, online = (list(e.buffers()) for e in (recipe.method.encoder, recipe.method.online))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(kept, online, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(kept, start, strict=True))
