"""RotNet's recipe against its sheet."""

import math

import pytest
import torch
from paper_size import one_step, rendered
from torch import nn
from torch.optim import SGD

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.keyed import Key
from selfsight.method import Clock
from selfsight.recipes.recipe import Setting
from selfsight.recipes.rotation import rotation
from selfsight.views.turned import Copies


def rates(size: int, epochs: int, at: tuple[int, ...]) -> list[float]:
    encoder = build_encoder("small_cnn", image_size=32)
    recipe = rotation(Setting(encoder=encoder, image_size=size, samples=10**6))
    assert recipe.epochs == epochs
    lr = recipe.optimisers["main"].lr
    return [lr(Clock(step=epoch * 100, steps=epochs * 100, epoch=epoch, epochs=epochs)) for epoch in at]


def test_the_rates_of_imagenet() -> None:
    found = rates(224, 50, (0, 14, 15, 29, 30, 44, 45, 49))
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_the_rates_of_cifar() -> None:
    found = rates(32, 200, (0, 59, 60, 119, 120, 159, 160, 199))
    assert found == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


@pytest.mark.parametrize(("size", "batch"), [(224, 192), (32, 128)])
def test_batch_and_optimiser(size: int, batch: int) -> None:
    encoder = build_encoder("small_cnn", image_size=32)
    recipe = rotation(Setting(encoder=encoder, image_size=size, samples=10**6))
    assert recipe.batch_size == batch
    spec = recipe.optimisers["main"]
    optimiser = build_optimiser(spec, [("bias", nn.Parameter(torch.ones(2)))])
    group = optimiser.param_groups[0]
    assert isinstance(optimiser, SGD)
    assert (group["momentum"], group["nesterov"], group["decay"]) == (0.9, True, True)
    assert spec.weight_decay(Clock(step=0, steps=1, epoch=0, epochs=1)) == 5e-4
    assert recipe.method.head.out_features == 4


def test_no_view_stretches_or_turns() -> None:
    encoder = build_encoder("small_cnn", image_size=32)
    (small,) = rotation(Setting(encoder=encoder, image_size=32, samples=100)).views.views
    (large,) = rotation(Setting(encoder=encoder, image_size=224, samples=100)).views.views
    assert (small.padding, small.scale, small.flip) == (4, None, 0.5)
    assert (large.scale, large.flip) == ((0.08, 1.0), 0.5)
    assert all(v.jitter is None and v.blur is None and v.grey == 0 for v in (small, large))


def test_all_four_copies_are_the_papers_and_one_is_asked_for() -> None:
    at = Setting(encoder=build_encoder("small_cnn", image_size=32), image_size=32, samples=100)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    key = Key(0, torch.zeros(2, dtype=torch.long), torch.arange(2))
    for recipe, turns in ((rotation(at), 4), (rotation(at, copies=1), 1)):
        assert recipe.views.render(images, recipe.views.plan(key), key).turns.shape == (2, turns)
        assert recipe.batch_size == 128


@pytest.mark.slow
@pytest.mark.parametrize("copies", [4, 1])
def test_the_papers_recipe_takes_a_step(copies: Copies) -> None:
    """ResNet-50 at 224 pixels, at batch 2 and so 8 turned images, or 2."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=224)
    recipe = rotation(Setting(encoder=encoder, image_size=224, samples=1_281_167), copies=copies)
    loss, moved = one_step(recipe, rendered(recipe), epoch=0)
    assert loss == pytest.approx(math.log(4), abs=0.5)
    assert moved > 0
