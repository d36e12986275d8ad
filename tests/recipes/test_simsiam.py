"""SimSiam's recipe against sheet 11's table."""

import math
from dataclasses import replace

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch.optim import SGD

from selfsight.engine.optimisers import build_optimiser, set_rates_
from selfsight.recipes.quick import quick
from selfsight.recipes.recipe import Recipe
from selfsight.recipes.simsiam import simsiam
from selfsight.views import augment


def rates(recipe: Recipe, epoch: float) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of each parameter at an epoch of the training."""
    spec = recipe.optimisers["main"]
    optimiser = build_optimiser(spec, recipe.method.trainables()["main"])
    set_rates_(optimiser, spec, at(epoch, recipe.epochs, recipe.batch_size, 50_000))
    groups = optimiser.param_groups
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}


@pytest.mark.slow
def test_paper() -> None:
    recipe = simsiam(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (100, 512)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    for epoch in (0, 25, 50, 100):
        expected = 0.1 * (1 + math.cos(math.pi * epoch / 100)) / 2
        assert spec.lr(at(epoch, 100, 512)) == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert spec.weight_decay(at(3, 100, 512)) == 1e-4
    assert layers(method.projector) == [
        *("2048-2048", "bn[wb]", "ReLU"),
        *("2048-2048", "bn[wb]", "ReLU"),
        *("2048-2048", "bn[]"),
    ]
    assert layers(method.predictor) == ["2048-512", "bn[wb]", "ReLU", "512-2048+b"]
    assert scopes(method) == {"all"}
    assert recipe.views.views == (augment.moco_v2(224),) * 2
    loss, moved = one_step(recipe)
    assert -1 <= loss <= 1
    assert moved > 0


def test_the_predictors_rate_stays_at_its_peak_and_everything_decays() -> None:
    recipe = simsiam(small(image_size=224, batch_size=256), projection=16, bottleneck=4)
    for epoch, expected in ((0, 0.05), (50, 0.025), (100, 0.0)):
        found = rates(recipe, epoch)
        for name, (rate, decay) in found.items():
            assert rate == pytest.approx(0.05 if name.startswith("predictor.") else expected, abs=1e-9), name
            assert decay == 1e-4, name
    assert {name.split(".")[0] for name in found} == {"encoder", "projector", "predictor"}
    followed = simsiam(small(image_size=224, batch_size=256), projection=16, bottleneck=4, fixed_predictor_lr=False)
    assert all(rate == pytest.approx(0, abs=1e-9) for rate, _ in rates(followed, 100).values())


def test_the_quick_optimiser_leaves_the_predictors_rate_fixed() -> None:
    recipe = quick(simsiam(small(), projection=16, bottleneck=4))
    found = rates(recipe, 800)
    assert {name.split(".")[0]: rate for name, (rate, _) in found.items()} == {
        "encoder": pytest.approx(0, abs=1e-9),
        "projector": pytest.approx(0, abs=1e-9),
        "predictor": 2e-3,
    }
    followed = quick(simsiam(small(), projection=16, bottleneck=4, fixed_predictor_lr=False))
    assert all(rate == pytest.approx(0, abs=1e-9) for rate, _ in rates(followed, 800).values())


def test_large_batches_warm_up() -> None:
    for batch, start in ((512, 0.1), (1024, 0.0), (4096, 0.0)):
        lr = simsiam(small(image_size=224, batch_size=batch), projection=8, bottleneck=4).optimisers["main"].lr
        assert lr(at(0, 100, batch)) == pytest.approx(start)
        assert lr.peak == pytest.approx(0.05 * batch / 256)


def test_small_images_follow_the_papers_appendix() -> None:
    recipe = simsiam(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (800, 512)
    assert [spec.lr(at(epoch, 800, 512, 50_000)) for epoch in (0, 400, 800)] == pytest.approx([0.06, 0.03, 0])
    assert spec.weight_decay(at(0, 800, 512, 50_000)) == 5e-4
    assert layers(method.projector) == ["512-2048", "bn[wb]", "ReLU", "2048-2048", "bn[]"]
    assert layers(method.predictor) == ["2048-512", "bn[wb]", "ReLU", "512-2048+b"]
    view = replace(augment.moco_v2(32, blur=False), normalise=augment.CIFAR10)
    assert recipe.views.views == (view, view)
    assert view.scale == (0.2, 1.0)


def test_heads_begin_as_pytorchs_layers_do() -> None:
    weight = simsiam(small(), hidden=256).method.projector[0].weight.detach()
    assert weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)  # uniform within 1 / sqrt(fan-in)


def test_a_narrower_projection_keeps_the_hidden_layers_and_a_quarter_as_its_bottleneck() -> None:
    """The code's ``--dim`` and the paper's table of output widths change the output alone."""
    method = simsiam(small(image_size=224), projection=256).method
    linears = [layer for layer in layers(method.projector) if "-" in layer]
    assert linears == ["512-2048", "2048-2048", "2048-256"]
    assert layers(method.predictor) == ["256-64", "bn[wb]", "ReLU", "64-256+b"]


def test_flags() -> None:
    recipe = simsiam(small(epochs=3, batch_size=64), projection=32, hidden=48, bottleneck=6)
    assert (recipe.epochs, recipe.batch_size) == (3, 64)
    assert layers(recipe.method.projector) == ["512-48", "bn[wb]", "ReLU", "48-32", "bn[]"]
    assert layers(recipe.method.predictor) == ["32-6", "bn[wb]", "ReLU", "6-32+b"]
    with pytest.raises(ValueError, match="--bottleneck must be greater than 0, not 0"):
        simsiam(small(), bottleneck=0)
