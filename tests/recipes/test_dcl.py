"""Decoupled contrastive learning's recipe against the public code's runs and the paper's summary."""

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch.optim import Adam

from selfsight.losses.decoupled import decoupled
from selfsight.recipes.dcl import dcl
from selfsight.recipes.simclr import simclr
from selfsight.views.view import Jitter


@pytest.mark.slow
def test_large_images() -> None:
    recipe, theirs = dcl(large()), simclr(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert spec.build.keywords == theirs.optimisers["main"].build.keywords
    assert spec.lr(at(20, 200, 256)) < spec.lr(at(10, 200, 256)) == pytest.approx(1.2)  # 0.075 x √256
    assert spec.weight_decay(at(3, 200, 256)) == 1e-6
    assert layers(method.projector) == ["2048-2048", "bn[wb]", "ReLU", "2048-128", "bn[w]"]
    assert (method.loss.func, method.loss.keywords) == (decoupled, {"temperature": 0.1, "sigma": None})
    assert (recipe.views, method.apart, scopes(method)) == (theirs.views, False, {"all"})
    _, moved = one_step(recipe)
    assert moved > 0


def test_small_images_follow_the_public_code() -> None:
    recipe = dcl(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (100, 128)
    assert (spec.build, spec.lr(at(50, 100, 128, 50_000)), spec.weight_decay.peak) == (Adam, 1e-3, 1e-6)
    assert layers(method.projector) == ["512-512", "bn[wb]", "ReLU", "512-128+b"]
    assert method.loss.keywords == {"temperature": 0.1, "sigma": None}
    assert (method.apart, scopes(method)) == (True, {"all"})
    view = recipe.views.views[0]
    assert (view.scale, view.grey, view.blur) == ((0.08, 1.0), 0.2, None)
    assert view.jitter == Jitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    assert view.normalise == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_flags() -> None:
    method = dcl(small(), temperature=0.2, weighted=True, projection=64).method
    assert method.loss.keywords == {"temperature": 0.2, "sigma": 0.5}
    assert layers(method.projector)[-1] == "512-64+b"
    assert dcl(small(), weighted=True, sigma=0.3).method.loss.keywords["sigma"] == 0.3
    assert dcl(small(), sigma=0.3).method.loss.keywords["sigma"] is None
