"""AMDIM's recipe against sheet 20's table."""

import math

import pytest
import torch
from paper_size import IMAGENET, at, one_step, rendered, scopes, small
from torch.optim import Adam

from selfsight.encoders.amdim import NAMES
from selfsight.encoders.build import build_encoder
from selfsight.flags import Flags
from selfsight.recipes.amdim import CIFAR10, STL10, amdim
from selfsight.recipes.assembly import assemble, resolve_size
from selfsight.recipes.catalogue import card
from selfsight.recipes.recipe import Setting
from selfsight.views.view import IMAGENET as NORMALISE
from selfsight.views.view import Jitter


def made(size: int, **options: object) -> Setting:
    torch.manual_seed(0)
    encoder = build_encoder("amdim_tiny", image_size=size, first=8, width=64, depth=1)
    return Setting(encoder=encoder, image_size=size, samples=IMAGENET if size > 96 else 50_000, **options)


@pytest.mark.slow
def test_the_readmes_command() -> None:
    encoder = build_encoder(card("amdim").encoder, image_size=128)
    recipe = amdim(Setting(encoder=encoder, image_size=128, samples=IMAGENET))
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (50, 480)
    assert spec.build.func is Adam
    assert spec.build.keywords == {"betas": (0.8, 0.999), "eps": 1e-8}
    assert [spec.lr(at(e, 50, 480)) for e in (1, 29.9, 30, 44.9, 45, 49)] == pytest.approx(
        [2e-4, 2e-4, 4e-5, 4e-5, 8e-6, 8e-6]
    )
    epoch = IMAGENET // 480
    assert spec.lr(at(249 / epoch, 50, 480)) == pytest.approx(2e-4 * 250 / 500)
    assert spec.lr(at(499 / epoch, 50, 480)) == pytest.approx(2e-4)
    assert spec.weight_decay(at(3, 50, 480)) == 1e-5
    assert (recipe.method.encoder.width, recipe.method.encoder.local_width) == (1536, 8 * 192)
    assert (recipe.method.clip, recipe.method.penalty) == (20.0, 0.05)
    assert scopes(recipe.method) == {"all"}
    view = recipe.views.views[0]
    assert (view.size, view.scale, view.ratio, view.interpolation) == (128, (0.3, 1.0), (0.7, 1.4), "bicubic")
    assert (view.jitter, view.grey, view.normalise) == (Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), 0.25, NORMALISE)
    assert recipe.views.shift == 0
    loss, moved = one_step(recipe, rendered(recipe))
    assert 0 < loss < 3 * (40 + math.log(50)) + 10
    assert moved > 0


@pytest.mark.parametrize(("size", "normalise", "shift"), [(32, CIFAR10, 4), (64, STL10, 0)])
def test_small_images(size: int, normalise: object, shift: int) -> None:
    recipe = amdim(made(size))
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (300, 200)
    rates = [spec.lr(at(e, 300, 200, 50_000)) for e in (10, 249, 250, 279, 280, 299)]
    assert rates == pytest.approx([2e-4, 2e-4, 4e-5, 4e-5, 8e-6, 8e-6])
    view = recipe.views.views[0]
    assert (view.scale, view.jitter.hue, view.normalise) == (None if size == 32 else (0.3, 1.0), 0.2, normalise)
    assert recipe.views.shift == shift
    assert NAMES[card("amdim").small_encoder] == (128, 1024, 3)


def test_a_short_training_warms_up_for_a_tenth() -> None:
    lr = amdim(made(32)).optimisers["main"].lr
    assert lr(at(0, 10, 500, 50_000)) == pytest.approx(2e-4 / 100)
    assert lr(at(1, 10, 500, 50_000)) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("native", "size"), [(None, 128), ((3, 32, 32), 32), ((3, 96, 96), 64), ((3, 64, 64), 64), ((1, 28, 28), 32)]
)
def test_images_come_at_a_size_that_its_encoder_takes(native: tuple[int, int, int] | None, size: int) -> None:
    assert resolve_size(Flags(), native, card("amdim").sizes) == size
    if native == (3, 96, 96):
        made = assemble("amdim", Flags(batch_size=8, backbone="amdim_nano"), {}, samples=64, native=native)
        assert (made.encoder.image_size, made.recipe.views.views[0].size) == (64, 64)
    assert resolve_size(Flags(image_size=100), native, card("amdim").sizes) == 100


def test_flags_and_what_is_refused() -> None:
    recipe = amdim(made(64, batch_size=16, epochs=3), clip=10.0, penalty=0.0, smallest_crop=0.5, shift=2)
    assert (recipe.epochs, recipe.batch_size) == (3, 16)
    assert (recipe.method.clip, recipe.method.penalty, recipe.views.shift) == (10.0, 0.0, 2)
    assert recipe.views.views[0].scale == (0.5, 1.0)
    with pytest.raises(ValueError, match="amdim needs an encoder with local features, not Width"):
        amdim(small())
