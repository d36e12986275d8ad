"""FlatNCE's recipe against sheet 7's table."""

import pytest
from paper_size import at, large, layers, one_step, scopes, small

from selfsight.engine.optimisers import LARS
from selfsight.losses.contrastive import nt_xent
from selfsight.losses.decoupled import flat_nce
from selfsight.recipes.flatnce import flatnce
from selfsight.views.view import IMAGENET, Blur, Jitter


@pytest.mark.slow
def test_paper() -> None:
    recipe = flatnce(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (100, 512)
    assert (spec.build.func, spec.build.keywords["momentum"], spec.build.keywords["variant"]) == (LARS, 0.9, "simclr")
    assert spec.lr(at(0, 100, 512)) == 0
    assert spec.lr(at(10, 100, 512)) == pytest.approx(0.6)
    assert spec.lr(at(55, 100, 512)) == pytest.approx(0.3, rel=1e-3)
    assert spec.lr(at(100, 100, 512)) == pytest.approx(1e-6)
    assert spec.weight_decay(at(3, 100, 512)) == 1e-6
    assert layers(method.projector) == ["2048-2048+b", "ReLU", "2048-128+b"]
    assert (method.loss.func, method.loss.keywords) == (flat_nce, {"temperature": 0.1})
    assert (method.log["info_nce"].func, method.log["info_nce"].keywords) == (nt_xent, {"temperature": 0.1})
    assert (method.apart, scopes(method)) == (False, {"all"})
    view = recipe.views.views[0]
    assert (view.scale, view.grey, view.interpolation, view.normalise) == ((0.08, 1.0), 0.2, "bilinear", IMAGENET)
    assert (view.jitter, view.blur) == (Jitter(0.8, 0.8, 0.8, 0.2, p=0.8), Blur(0.5, kernel=23))
    loss, moved = one_step(recipe)
    assert loss == 1
    assert moved > 0


def test_small_images_have_the_same_defaults_and_weaker_views() -> None:
    recipe = flatnce(small())
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size, spec.lr.peak) == (100, 512, 0.6)
    assert layers(recipe.method.projector) == ["512-512+b", "ReLU", "512-128+b"]
    assert recipe.method.loss.keywords == {"temperature": 0.1}
    view = recipe.views.views[1]
    assert (view.jitter, view.blur) == (Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), None)
    assert view.normalise == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_square_root_scaling_is_the_readmes_column() -> None:
    column = {128: (0.15, 0.85), 256: (0.3, 1.2), 512: (0.6, 1.7), 2048: (2.4, 3.39), 4096: (4.8, 4.8)}
    for batch, (linear, root) in column.items():
        assert flatnce(small(batch_size=batch)).optimisers["main"].lr.peak == pytest.approx(linear)
        peak = flatnce(small(batch_size=batch), scaling="sqrt").optimisers["main"].lr.peak
        assert peak == pytest.approx(root, abs=0.006)
