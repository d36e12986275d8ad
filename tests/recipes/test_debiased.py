"""The debiased loss's and hard negatives' recipes against the tables of sheets 5 and 6."""

from dataclasses import replace
from functools import partial

import pytest
from paper_size import at, large, layers, one_step, rendered, scopes, small
from torch.optim import Adam

from selfsight.engine.optimisers import LARS
from selfsight.losses import debiased as losses
from selfsight.recipes.debiased import annealed, debiased, hard_negatives
from selfsight.recipes.simclr import simclr
from selfsight.views import augment
from selfsight.views.view import Blur, Jitter


def keywords(loss: partial) -> dict[str, float]:
    return {k: v for k, v in loss.keywords.items() if v is not None}


@pytest.mark.parametrize(("build", "epochs", "beta"), [(debiased, 500, {}), (hard_negatives, 400, {"beta": 1.0})])
def test_small_images_follow_the_official_codes(build, epochs, beta) -> None:
    recipe = build(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (epochs, 256)
    assert spec.build is Adam
    assert [spec.lr(at(epoch, epochs, 256, 50_000)) for epoch in (0, 100, epochs)] == [1e-3] * 3
    assert spec.weight_decay(at(3, epochs, 256, 50_000)) == 1e-6
    assert layers(method.projector) == ["512-512", "bn[wb]", "ReLU", "512-128+b"]
    assert method.loss.func is getattr(losses, build.__name__)
    assert keywords(method.loss) == {"temperature": 0.5, "tau_plus": 0.1, **beta}
    assert (method.apart, method.scheduled, scopes(method)) == (True, {}, {"all"})
    view = recipe.views.views[0]
    assert recipe.views.views == (augment.debiased(32),) * 2
    assert (view.scale, view.flip, view.grey, view.interpolation) == ((0.08, 1.0), 0.5, 0.2, "bilinear")
    assert (view.jitter, view.blur) == (Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), Blur(0.5, (0.1, 2.0), kernel=3))
    assert view.normalise == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@pytest.mark.slow
@pytest.mark.parametrize("build", [debiased, hard_negatives])
def test_large_images_have_simclrs_settings_and_this_temperature(build) -> None:
    recipe = build(large())
    spec, method, theirs = recipe.optimisers["main"], recipe.method, simclr(large())
    assert (recipe.epochs, recipe.batch_size) == (theirs.epochs, theirs.batch_size)
    assert spec.build.func is LARS
    assert spec.build.keywords == theirs.optimisers["main"].build.keywords
    assert (spec.lr.peak, spec.weight_decay.peak) == (4.8, 1e-6)
    assert layers(method.projector) == layers(theirs.method.projector)
    assert keywords(method.loss).items() >= {"temperature": 0.5, "tau_plus": 0.001}.items()
    assert (method.apart, recipe.views) == (False, theirs.views)
    loss, moved = one_step(recipe)
    assert 0 < loss < 10
    assert moved > 0


@pytest.mark.slow
def test_paper_size_on_small_images() -> None:
    """ResNet-50's step with each view in a forward of its own."""
    recipe = hard_negatives(replace(large(), image_size=32), beta=2.0)
    loss, moved = one_step(recipe, rendered(recipe))
    assert 0 < loss < 10
    assert moved > 0


def test_hardness_goes_down_to_zero_in_nine_levels() -> None:
    curve = annealed(2.0)
    seen = [curve(at(epoch, 900, 256, 50_000)) for epoch in range(900)]
    assert seen == sorted(seen, reverse=True)
    assert sorted(set(seen), reverse=True) == pytest.approx([2 * k / 8 for k in range(8, -1, -1)])
    assert all(abs(seen.count(level) - 100) <= 1 for level in set(seen))
    assert (curve(at(900, 900, 256, 50_000)), curve.peak, str(curve)) == (0, 2, "2 -> 0 in 9 levels")


def test_flags() -> None:
    method = hard_negatives(small(), temperature=0.3, tau_plus=0.05, beta=0.5, anneal=True, projection=64).method
    assert keywords(method.loss) == {"temperature": 0.3, "tau_plus": 0.05, "beta": 0.5}
    assert keywords(method.log["share_at_the_floor"]) == keywords(method.loss)
    assert keywords(method.log["effective_negatives"]) == {"temperature": 0.3, "beta": 0.5}
    assert method.scheduled["beta"](at(0, 400, 256, 50_000)) == 0.5
    assert layers(method.projector)[-1] == "512-64+b"
    assert keywords(debiased(small(), tau_plus=0.0).method.loss)["tau_plus"] == 0
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="--tau-plus must be at least 0 and below 1"):
            debiased(small(), tau_plus=wrong)
    with pytest.raises(ValueError, match="--beta must be at least 0, not -1"):
        hard_negatives(small(), beta=-1.0)
