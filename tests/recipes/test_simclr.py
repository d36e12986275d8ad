"""SimCLR's recipe against sheet 8's table."""

import math

import pytest
from paper_size import at, large, layers, one_step, scopes, small

from selfsight.engine.optimisers import LARS
from selfsight.recipes.simclr import simclr
from selfsight.views import augment


@pytest.mark.slow
def test_paper() -> None:
    recipe = simclr(large())
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (1000, 4096)
    assert (spec.build.func, spec.build.keywords["momentum"], spec.build.keywords["variant"]) == (LARS, 0.9, "simclr")
    assert spec.build.keywords["eta"] == 1e-3
    assert spec.lr(at(0, 1000, 4096)) == 0
    assert spec.lr(at(5, 1000, 4096)) == pytest.approx(2.4, rel=1e-3)
    assert spec.lr(at(10, 1000, 4096)) == pytest.approx(4.8)
    assert spec.lr(at(505, 1000, 4096)) == pytest.approx(2.4, rel=1e-3)
    assert spec.lr(at(1000, 1000, 4096)) == pytest.approx(0, abs=1e-9)
    assert spec.weight_decay(at(3, 1000, 4096)) == 1e-6
    assert layers(recipe.method.projector) == ["2048-2048", "bn[wb]", "ReLU", "2048-128", "bn[w]"]
    assert recipe.method.projector[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert recipe.method.loss.keywords == {"temperature": 0.1}
    assert scopes(recipe.method) == {"all"}
    assert recipe.views.views == (augment.simclr(224),) * 2
    loss, moved = one_step(recipe)
    assert 0 < loss < math.log(3) + 20
    assert moved > 0


def test_small_images_follow_the_repositorys_cifar_command() -> None:
    recipe = simclr(small())
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (1000, 512)
    assert spec.lr.peak == 2.0
    assert spec.weight_decay(at(3, 1000, 512, 50_000)) == 1e-4
    assert layers(recipe.method.projector) == [
        *("512-512", "bn[wb]", "ReLU"),
        *("512-512", "bn[wb]", "ReLU"),
        *("512-128", "bn[w]"),
    ]
    assert recipe.method.loss.keywords == {"temperature": 0.5}
    assert recipe.views.views == (augment.simclr(32, strength=0.5, blur=False),) * 2


def test_flags() -> None:
    recipe = simclr(small(batch_size=256, epochs=3), temperature=0.2, projection=64)
    assert (recipe.epochs, recipe.batch_size, recipe.optimisers["main"].lr.peak) == (3, 256, 1.0)
    assert recipe.method.loss.keywords == {"temperature": 0.2}
    assert layers(recipe.method.projector)[-2:] == ["512-64", "bn[w]"]


def test_small_images_by_the_papers_appendix() -> None:
    recipe = simclr(small(), cifar="paper")
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size, spec.lr.peak) == (1000, 1024, 4.0)
    assert spec.weight_decay(at(3, 1000, 1024, 50_000)) == 1e-6
    assert layers(recipe.method.projector) == ["512-512", "bn[wb]", "ReLU", "512-128", "bn[w]"]
    assert recipe.method.loss.keywords == {"temperature": 0.5}
    assert recipe.views.views == (augment.simclr(32, strength=0.5, blur=False),) * 2


def test_square_root_scaling() -> None:
    """Appendix B.1: 0.075 x √batch, which is linear scaling's 4.8 at 4096."""
    for batch, peak in ((256, 1.2), (1024, 2.4), (4096, 4.8), (8192, 6.788)):
        recipe = simclr(small(image_size=224, batch_size=batch), scaling="sqrt")
        assert recipe.optimisers["main"].lr.peak == pytest.approx(peak, rel=1e-4)


def test_layers_of_the_head() -> None:
    assert layers(simclr(small(), layers=1).method.projector) == ["512-128", "bn[w]"]
    assert len(layers(simclr(small(image_size=224), layers=3).method.projector)) == 8
