"""Colorization's recipe against its sheet."""

import math

import pytest
import torch
from paper_size import large, one_step, rendered, small
from torch import nn
from torch.optim import Adam

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.method import Clock
from selfsight.recipes.assembly import Assembly, encoder_facts
from selfsight.recipes.colorization import colorization
from selfsight.recipes.recipe import Setting


def at(progress: float, steps: int = 2000) -> Clock:
    return Clock(step=round(progress * steps), steps=steps, epoch=0, epochs=1)


def test_the_papers_column() -> None:
    recipe = colorization(large())
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert type(optimiser) is Adam
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.99)
    assert [spec.lr(at(share)) for share in (0, 0.44, 0.45, 1)] == pytest.approx([3e-5, 3e-5, 3e-6, 3e-6])
    assert spec.weight_decay(at(0.5)) == 1e-3
    assert (recipe.batch_size, recipe.epochs) == (40, 16)
    assert (method.stride, method.neighbours, method.sigma, method.mix, method.temperature, method.grey) == (
        *(4, 5, 5.0, 0.5),
        *(0.38, 5.0),
    )
    (view,) = recipe.views.views
    assert view.scale == pytest.approx((176**2 / 256**2,) * 2)
    assert (view.ratio, view.flip, view.jitter) == ((1.0, 1.0), 0.5, None)
    assert method.decoder.predict.out_channels == 313
    assert set(method.state_dict()) >= {"prior", "seen"}


def test_the_small_image_column() -> None:
    recipe = colorization(small())
    spec = recipe.optimisers["main"]
    assert [spec.lr(at(share)) for share in (0, 0.74, 0.75)] == pytest.approx([3e-4, 3e-4, 3e-5])
    assert (recipe.batch_size, recipe.epochs, spec.weight_decay(at(0))) == (128, 200, 1e-4)
    assert colorization(small(batch_size=64)).optimisers["main"].lr(at(0)) == pytest.approx(1.5e-4)


def test_a_run_says_that_its_encoder_sees_lightness() -> None:
    settings = {"method": "colorization", "data": {"name": ""}, "resolved": {"epochs": 1}, "selfsight": ""}
    facts = encoder_facts(Assembly(colorization(small()), {}), settings)
    assert (facts["grey"], facts["greyscale"]) == (True, "lightness")
    assert facts["normalise"] == {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mix": 0.0}, "--mix"),
        ({"neighbours": 400}, "--neighbours"),
        ({"sigma": -1.0}, "--sigma"),
        ({"grid": 0}, "--grid"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        colorization(small(), **wrong)


def test_images_without_colour_are_refused() -> None:
    with pytest.raises(ValueError, match="not 1 channels"):
        colorization(small(channels=1))


def test_a_transformer_serves_as_well() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    recipe = colorization(Setting(encoder=encoder, image_size=32, samples=100, batch_size=4), decoder_width=16)
    assert encoder.model.global_pool == "avg"  # type: ignore[union-attr]  # no loss reads the class token
    loss, moved = one_step(recipe, rendered(recipe), epoch=0)
    assert loss == pytest.approx(math.log(313), abs=0.5)
    assert moved > 0


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    recipe = colorization(large())
    loss, moved = one_step(recipe, rendered(recipe), epoch=0)
    assert loss == pytest.approx(math.log(313), abs=0.5)
    assert moved > 0
