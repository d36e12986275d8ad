"""VICReg's recipe against the official code's settings and solo-learn's."""

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch import nn

from selfsight.engine.optimisers import LARS
from selfsight.recipes.recipe import Group
from selfsight.recipes.vicreg import vicreg
from selfsight.views import augment


@pytest.mark.slow
def test_paper() -> None:
    recipe = vicreg(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 2048)
    assert (spec.build.func, spec.build.keywords) == (LARS, {"momentum": 0.9, "eta": 1e-3, "variant": "byol"})
    assert spec.lr(at(0, 1000, 2048)) == 0
    assert spec.lr(at(10, 1000, 2048)) == pytest.approx(0.2 * 8)
    assert spec.lr(at(1000, 1000, 2048)) == pytest.approx(0.2 * 8 / 1000)
    assert spec.weight_decay(at(3, 1000, 2048)) == 1e-6
    assert spec.groups("a.bias", nn.Parameter(method.expander[0].bias.detach())) == Group(decay=False, adapt=False)
    assert spec.groups("a.weight", method.expander[0].weight) == Group()
    assert layers(method.expander) == [
        *("2048-8192+b", "bn[wb]", "ReLU"),
        *("8192-8192+b", "bn[wb]", "ReLU"),
        *("8192-8192",),
    ]
    assert method.weights == (25.0, 25.0, 1.0)
    assert scopes(method) == {"all"}
    assert recipe.views.views == (augment.barlow_twins(224, view=1), augment.barlow_twins(224, view=2))
    loss, moved = one_step(recipe)
    assert loss > 0
    assert moved > 0


@pytest.mark.parametrize(("epochs", "base"), [(100, 0.3), (101, 0.2), (1000, 0.2)])
def test_short_trainings_have_the_readmes_higher_rate(epochs: int, base: float) -> None:
    recipe = vicreg(small(image_size=224, epochs=epochs, batch_size=512), projection=8)
    assert recipe.optimisers["main"].lr.peak == pytest.approx(2 * base)


def test_small_images_follow_solo_learn() -> None:
    recipe = vicreg(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 256)
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.lr(at(0, 1000, 256, 50_000)) == pytest.approx(3e-5)
    assert spec.lr(at(10, 1000, 256, 50_000)) == pytest.approx(0.3)
    assert spec.weight_decay(at(0, 1000, 256, 50_000)) == 1e-4
    assert [p for p in layers(method.expander) if "-" in p] == ["512-2048+b", "2048-2048+b", "2048-2048"]
    assert method.weights == (25.0, 50.0, 1.0)  # the mean of two variances, where solo-learn has 25 of their sum
    first, second = recipe.views.views
    assert first == second
    assert (first.scale, first.interpolation, first.blur, first.grey) == ((0.2, 1.0), "bicubic", None, 0.2)
    assert first.solarise.p == 0.1
    assert first.jitter == augment.small(32, kind="asymmetric").jitter


def test_flags() -> None:
    recipe = vicreg(small(), invariance=1.0, variance=2.0, covariance=3.0, projection=16)
    assert recipe.method.weights == (1.0, 2.0, 3.0)
    assert layers(recipe.method.expander)[-1] == "16-16"
    with pytest.raises(ValueError, match="--covariance must be greater than 0, not 0"):
        vicreg(small(), covariance=0.0)
