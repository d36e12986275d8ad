"""Alignment and uniformity's recipe against sheet 4's table."""

import math

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch.optim import SGD

from selfsight.losses import hypersphere
from selfsight.methods.moco import MoCo
from selfsight.methods.simclr import SimCLR
from selfsight.recipes.align_uniform import align_uniform
from selfsight.views import augment
from selfsight.views.view import Jitter


def test_small_images_follow_the_stl_10_script() -> None:
    recipe = align_uniform(small(image_size=64, samples=105_000))
    spec, method = recipe.optimisers["main"], recipe.method
    assert type(method) is SimCLR
    assert (recipe.epochs, recipe.batch_size) == (200, 768)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    epochs = (0, 154.5, 155.5, 169.5, 170.5, 184.5, 185.5, 199)
    rates = [spec.lr(at(epoch, 200, 768, 105_000)) for epoch in epochs]
    assert rates == pytest.approx([0.36, 0.36, 0.036, 0.036, 0.0036, 0.0036, 0.00036, 0.00036])
    assert spec.weight_decay(at(3, 200, 768, 105_000)) == 1e-4
    assert layers(method.projector) == ["512-128+b"]
    assert method.projector[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert method.loss.func is hypersphere.align_uniform
    assert method.loss.keywords == {"align": 1.0, "uniform": 1.0, "alpha": 2.0, "t": 2.0}
    assert (method.apart, scopes(method)) == (False, {"all"})
    view = recipe.views.views[0]
    assert recipe.views.views == (augment.align_uniform(64),) * 2
    assert (view.scale, view.flip, view.grey, view.blur) == ((0.08, 1.0), 0.5, 0.2, None)
    assert (view.jitter, view.interpolation) == (Jitter(0.4, 0.4, 0.4, 0.4, p=1.0), "bilinear")
    assert view.normalise == ((0.4409, 0.4279, 0.3868), (0.2683, 0.2610, 0.2687))


@pytest.mark.slow
def test_large_images_are_the_paper_s_variant_of_moco() -> None:
    recipe = align_uniform(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert type(method) is MoCo
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    for epoch in (0, 50, 100, 199):
        expected = 0.03 * (1 + math.cos(math.pi * epoch / 200)) / 2
        assert spec.lr(at(epoch, 200, 256)) == pytest.approx(expected, rel=1e-6)
    assert spec.weight_decay(at(0, 200, 256)) == 1e-4
    assert layers(method.projector) == ["2048-2048+b", "ReLU", "2048-128+b"]
    assert [q.keys.shape for q in method.queues] == [(65536, 128)]
    assert (method.momentum(at(100, 200, 256)), method.symmetric, scopes(method)) == (0.999, False, {32})
    assert method.loss.func is hypersphere.align_uniform_with_queue
    assert method.loss.keywords == {"align": 3.0, "uniform": 1.0, "alpha": 2.0, "t": 3.0}
    assert recipe.views.views == (augment.moco_v2(224),) * 2
    loss, moved = one_step(recipe)
    assert -6 < loss < 12
    assert moved > 0
    assert int(method.queues[0].pointer) == 2


def test_flags() -> None:
    method = align_uniform(small(), align=2.0, uniform=0.5, align_alpha=1.0, uniform_t=3.0, projection=64).method
    assert method.loss.keywords == {"align": 2.0, "uniform": 0.5, "alpha": 1.0, "t": 3.0}
    assert layers(method.projector) == ["512-64+b"]
    flags = {"align": 2.0, "uniform_t": 1.0, "queue": 512, "momentum": 0.9, "projection": 32}
    method = align_uniform(small(image_size=224), **flags).method
    assert method.queues[0].keys.shape == (512, 32)
    assert (method.momentum(at(7, 200, 256)), method.loss.keywords["align"], method.loss.keywords["t"]) == (0.9, 2, 1)
    for unused in ({"queue": 512}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match="--queue and --momentum are for images above 96 px"):
            align_uniform(small(), **unused)
    with pytest.raises(ValueError, match="--align-alpha must be at least 1"):
        align_uniform(small(), align_alpha=0.5)
