"""BYOL's recipe against sheet 10's tables."""

from typing import Any

import pytest
from paper_size import at, large, layers, one_step, scopes, small

from selfsight.engine.optimisers import LARS
from selfsight.flags import Flags
from selfsight.recipes.assembly import assemble
from selfsight.recipes.byol import byol
from selfsight.views import augment


@pytest.mark.slow
def test_paper() -> None:
    recipe = byol(large())
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (1000, 4096)
    assert (spec.build.func, spec.build.keywords["momentum"], spec.build.keywords["variant"]) == (LARS, 0.9, "byol")
    assert spec.build.keywords["eta"] == 1e-3
    assert spec.lr(at(0, 1000, 4096)) == 0
    assert spec.lr(at(10, 1000, 4096)) == pytest.approx(0.2 * 4096 / 256)
    assert spec.lr(at(1000, 1000, 4096)) == pytest.approx(0, abs=1e-9)
    assert spec.weight_decay(at(3, 1000, 4096)) == 1.5e-6
    method = recipe.method
    assert layers(method.projector) == ["2048-4096+b", "bn[wb]", "ReLU", "4096-256"]
    assert layers(method.predictor) == ["256-4096+b", "bn[wb]", "ReLU", "4096-256"]
    assert method.momentum(at(0, 1000, 4096)) == pytest.approx(0.996)
    assert method.momentum(at(500, 1000, 4096)) == pytest.approx(0.998, rel=1e-5)
    assert method.momentum(at(1000, 1000, 4096)) == pytest.approx(1)
    assert scopes(method) == {"all"}
    assert recipe.views.views == (augment.byol(224, view=1), augment.byol(224, view=2))
    loss, moved = one_step(recipe)
    assert 0 <= loss <= 8
    assert moved > 0


@pytest.mark.parametrize(
    ("epochs", "base", "decay", "m"),
    [
        (40, 0.45, 1e-6, 0.97),
        (41, 0.45, 1e-6, 0.99),
        (100, 0.45, 1e-6, 0.99),
        (300, 0.3, 1e-6, 0.99),
        (1000, 0.2, 1.5e-6, 0.996),
        (2000, 0.2, 1.5e-6, 0.996),
    ],
)
def test_shorter_trainings_have_rows_of_their_own(epochs: int, base: float, decay: float, m: float) -> None:
    recipe = byol(small(image_size=128, epochs=epochs, batch_size=512), hidden=16, projection=8)
    spec, start = recipe.optimisers["main"], at(0, epochs, 512, 50_000)
    assert recipe.epochs == epochs
    assert spec.lr.peak == pytest.approx(base * 2)
    assert spec.weight_decay(start) == decay
    assert recipe.method.momentum(start) == pytest.approx(m)


def test_small_images_follow_solo_learn() -> None:
    recipe = byol(small())
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (1000, 256)
    assert spec.build.func is LARS
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.lr(at(0, 1000, 256, 50_000)) == pytest.approx(3e-5)
    assert spec.lr(at(10, 1000, 256, 50_000)) == pytest.approx(1.0)
    assert spec.weight_decay(at(0, 1000, 256, 50_000)) == 1e-5
    assert recipe.method.momentum(at(0, 1000, 256, 50_000)) == pytest.approx(0.99)
    assert recipe.method.momentum(at(1000, 1000, 256, 50_000)) == pytest.approx(1)
    assert layers(recipe.method.projector) == ["512-4096+b", "bn[wb]", "ReLU", "4096-256"]
    assert recipe.views.views == tuple(augment.small(32, kind="asymmetric", view=view) for view in (1, 2))


@pytest.mark.parametrize(
    ("flags", "momentum", "expected"),
    [
        ({"batch_size": 512, "lr": 0.8}, 0.9995, (0.4 * 2, 1.5e-6, 0.9995)),  # the paper's small batch
        ({"batch_size": 256, "lr": 2.0, "weight_decay": 1e-6}, None, (2.0, 1e-6, 0.996)),  # the README's small run
    ],
)
def test_the_sources_smaller_runs_are_a_matter_of_flags(
    flags: dict[str, Any], momentum: float | None, expected: tuple[float, float, float]
) -> None:
    heads = {"hidden": 16, "projection": 8, "momentum": momentum}
    asked = Flags(backbone="tiny_cnn", image_size=128, **flags)
    recipe = assemble("byol", asked, heads, samples=9469, native=None).recipe
    spec, start = recipe.optimisers["main"], at(0, 1000, flags["batch_size"], 9469)
    assert recipe.epochs == 1000
    assert spec.lr(at(10, 1000, flags["batch_size"], 9469)) == pytest.approx(expected[0])
    assert (spec.weight_decay(start), recipe.method.momentum(start)) == pytest.approx(expected[1:])


def test_momentum_flag_moves_the_start() -> None:
    recipe = byol(small(), momentum=0.0, hidden=8, projection=4)
    assert recipe.method.momentum(at(0, 1000, 256, 50_000)) == 0


def test_symmetric_views_blur_and_solarise_alike() -> None:
    first, second = byol(small(image_size=224), symmetric_views=True, hidden=8, projection=4).views.views
    assert first == second
    assert (first.blur.p, first.solarise.p) == (0.5, 0.2)
    assert first.blur.kernel == augment.byol(224, view=1).blur.kernel
    little = byol(small(), symmetric_views=True, hidden=8, projection=4).views.views
    assert little == (augment.small(32, kind="asymmetric", view=2),) * 2
