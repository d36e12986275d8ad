"""AdCo's recipe against sheet 19's tables."""

import math
from dataclasses import replace

import pytest
from paper_size import at, large, layers, one_step, rendered, scopes, small
from torch.optim import SGD, AdamW

from selfsight.flags import Flags
from selfsight.recipes.adco import adco
from selfsight.recipes.assembly import assemble
from selfsight.recipes.recipe import decay_all
from selfsight.views import augment


@pytest.mark.slow
def test_paper() -> None:
    recipe = adco(large())
    main, adversary, method = recipe.optimisers["main"], recipe.optimisers["adversary"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    for spec in (main, adversary):
        assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
        assert spec.groups is decay_all
        assert spec.weight_decay(at(0, 200, 256)) == 1e-4
    for epoch in (0, 50, 100, 200):
        expected = 0.0006 + (0.03 - 0.0006) * (1 + math.cos(math.pi * epoch / 200)) / 2
        assert main.lr(at(epoch, 200, 256)) == pytest.approx(expected, rel=1e-6)
        assert adversary.lr(at(epoch, 200, 256)) == 3
    assert layers(method.projector) == ["2048-2048+b", "ReLU", "2048-128+b"]
    assert method.adversaries.shape == (65536, 128)
    assert method.adversaries.std().item() == pytest.approx(1, rel=0.01)
    assert (method.temperature, method.adversary_temperature) == (0.12, 0.02)
    assert (method.momentum(at(100, 200, 256)), method.symmetric, int(method.filled)) == (0.999, False, 0)
    assert scopes(method) == {32}
    assert recipe.views.views == (augment.moco_v2(224),) * 2
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss > 0
    assert moved > 0
    assert int(method.filled) == 2


def test_smaller_queries_are_the_codes() -> None:
    views = adco(small(image_size=224, batch_size=8), multi_crop=True, negatives=8).views.views
    assert [view.size for view in views] == [224, 224, 192, 160, 128, 96]
    scales = [(0.2, 1.0), (0.2, 1.0), (0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)]
    assert [view.scale for view in views] == scales
    assert all(replace(view, size=224, scale=(0.2, 1.0)) == augment.moco_v2(224) for view in views)
    assert [view.size for view in adco(small(), multi_crop=True).views.views] == [32, 32, 24, 24, 16, 16]


def test_few_negatives_and_both_directions_have_a_column_of_their_own() -> None:
    def column(**options: int) -> tuple[float, float, float]:
        recipe = adco(small(image_size=224), **options)
        method = recipe.method
        return recipe.optimisers["main"].lr.peak, method.temperature, method.adversary_temperature

    assert column(negatives=8192, symmetric=True) == (0.04, 0.14, 0.03)
    assert column(negatives=8192) == (0.03, 0.12, 0.02)
    assert column(negatives=16384, symmetric=True) == (0.03, 0.12, 0.02)


def test_small_images_follow_the_sheets_suggestion() -> None:
    recipe = adco(small())
    main, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 512)
    assert main.lr.peak == pytest.approx(0.06)
    assert main.lr(at(200, 200, 512, 50_000)) == pytest.approx(0.0012)
    assert main.weight_decay(at(0, 200, 512, 50_000)) == 5e-4
    assert recipe.optimisers["adversary"].weight_decay(at(0, 200, 512, 50_000)) == 1e-4
    assert method.adversaries.shape == (4096, 128)
    assert (method.temperature, method.adversary_temperature) == (0.12, 0.02)
    assert method.momentum(at(0, 200, 512)) == 0.99
    assert scopes(method) == {64}
    view = replace(augment.moco_v2(32, blur=False, scale=(0.08, 1.0)), normalise=augment.CIFAR10)
    assert recipe.views.views == (view, view)


def test_the_adversaries_ascent_is_moved_by_no_flag_but_their_own() -> None:
    """Under ``--optimiser adamw`` every adversary would move as far, however little of the softmax it has."""
    for given in ({"optimiser": "adamw", "lr": 4e-3}, {"lr": 0.3, "weight_decay": 0.1}):
        flags = Flags(batch_size=16, backbone="tiny_cnn", **given)
        recipe = assemble("adco", flags, {"adversary_lr": 2.0}, samples=64, native=(3, 32, 32)).recipe
        main, adversary = recipe.optimisers["main"], recipe.optimisers["adversary"]
        assert main.lr.peak == given["lr"]
        assert (main.build is AdamW) == ("optimiser" in given)
        assert (adversary.build.func, adversary.build.keywords) == (SGD, {"momentum": 0.9})
        assert (adversary.lr(at(7, 200, 16, 64)), adversary.weight_decay(at(7, 200, 16, 64))) == (2.0, 1e-4)


def test_flags() -> None:
    recipe = adco(
        small(samples=3000), temperature=0.3, adversary_temperature=0.1, adversary_lr=1.5, momentum=0.5, projection=32
    )
    method = recipe.method
    assert method.adversaries.shape == (3000, 32)  # never more than images
    assert (method.temperature, method.adversary_temperature, method.momentum(at(7, 200, 512))) == (0.3, 0.1, 0.5)
    assert recipe.optimisers["adversary"].lr(at(7, 200, 512)) == 1.5
    with pytest.raises(ValueError, match="--multi-crop does not go with --symmetric"):
        adco(small(), symmetric=True, multi_crop=True)
    with pytest.raises(ValueError, match="--negatives must be greater than 0"):
        adco(small(), negatives=-1)
