"""Barlow Twins' recipe against sheet 15's table."""

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch import nn

from selfsight.engine.optimisers import LARS, build_optimiser, set_rates_
from selfsight.recipes.barlow_twins import barlow_twins
from selfsight.views import augment


@pytest.mark.slow
def test_paper() -> None:
    recipe = barlow_twins(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 2048)
    assert (spec.build.func, spec.build.keywords["momentum"], spec.build.keywords["variant"]) == (LARS, 0.9, "byol")
    assert spec.lr(at(10, 1000, 2048)) == pytest.approx(0.2 * 8)
    assert spec.lr(at(1000, 1000, 2048)) == pytest.approx(0.2 * 8 / 1000)
    assert spec.weight_decay(at(3, 1000, 2048)) == 1e-6
    assert layers(method.projector) == [
        *("2048-8192", "bn[wb]", "ReLU"),
        *("8192-8192", "bn[wb]", "ReLU"),
        *("8192-8192",),
    ]
    assert method.standardise.num_features == 8192
    assert not method.standardise.affine
    assert (method.weight, method.scale) == (0.0051, 1 / 16)
    assert scopes(method) == {"all"}
    assert recipe.views.views == (augment.barlow_twins(224, view=1), augment.barlow_twins(224, view=2))
    loss, moved = one_step(recipe)
    assert loss > 0
    assert moved > 0


def test_biases_and_norms_have_the_codes_own_rate() -> None:
    recipe = barlow_twins(small(image_size=224, batch_size=256), projection=8)
    spec = recipe.optimisers["main"]
    weight, bias = nn.Parameter(nn.Linear(2, 2).weight.detach()), nn.Parameter(nn.Linear(2, 2).bias.detach())
    optimiser = build_optimiser(spec, [("weight", weight), ("bias", bias)])
    set_rates_(optimiser, spec, at(10, 1000, 256))
    rates = {name: group["lr"] for group in optimiser.param_groups for name in group["param_names"]}
    decays = {name: group["weight_decay"] for group in optimiser.param_groups for name in group["param_names"]}
    assert rates == {"weight": pytest.approx(0.2), "bias": pytest.approx(0.0048)}
    assert decays == {"weight": 1e-6, "bias": 0.0}


def test_small_images_follow_solo_learn() -> None:
    recipe = barlow_twins(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 256)
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.lr(at(10, 1000, 256, 50_000)) == pytest.approx(0.3)
    assert spec.weight_decay(at(0, 1000, 256, 50_000)) == 1e-4
    assert [p for p in layers(method.projector) if "-" in p] == ["512-2048", "2048-2048", "2048-2048"]
    assert (method.weight, method.scale) == (0.0051, 0.1)
    assert recipe.views.views == tuple(augment.small(32, kind="asymmetric", view=view) for view in (1, 2))


def test_the_scale_of_another_number_of_processes() -> None:
    assert barlow_twins(small(image_size=224), projection=8, scale=1 / 32).method.scale == 1 / 32  # the paper's run
    with pytest.raises(ValueError, match="--scale must be greater than 0, not 0"):
        barlow_twins(small(), projection=8, scale=0.0)
