"""InvaSpread's recipe against sheet 18's table."""

import math
from dataclasses import replace

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch.optim import SGD

from selfsight.losses.spreading import invariance_and_spreading
from selfsight.methods.simclr import SimCLR
from selfsight.recipes.invaspread import invaspread
from selfsight.views import augment


def test_the_papers_cifar_and_stl_settings() -> None:
    for size in (32, 96):
        recipe = invaspread(small(image_size=size))
        spec, method = recipe.optimisers["main"], recipe.method
        assert (recipe.epochs, recipe.batch_size) == (301, 128)
        assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
        rates = [spec.lr(at(epoch, 301, 128, 50_000)) for epoch in (0, 119, 120, 159, 160, 199, 200, 300)]
        assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0015, 0.0015, 0.0003, 0.0003])
        assert spec.weight_decay(at(0, 301, 128, 50_000)) == 5e-4
        assert isinstance(method, SimCLR)
        assert layers(method.projector) == ["512-128+b"]
        assert method.loss.func is invariance_and_spreading
        assert method.loss.keywords == {"temperature": 0.1, "weight": 1.0, "detach_keys": True}
        assert scopes(method) == {"all"}
        view = recipe.views.views[0]
        assert recipe.views.views == (view, view)
        assert (view.flip, view.order[:2]) == (0.5, ("jitter", "grey"))
        assert view == replace(augment.moco_v1(size), order=view.order, normalise=augment.CIFAR10_BY_IMAGE)


@pytest.mark.slow
def test_one_step_at_real_size() -> None:
    recipe = invaspread(large())
    assert layers(recipe.method.projector) == ["2048-128+b"]
    assert recipe.views.views[0].normalise == augment.moco_v1(224).normalise
    loss, moved = one_step(recipe)
    assert 0 < loss < 60  # two images: cosines within 2 / 0.1 of each other, in two terms
    assert math.isfinite(loss)
    assert moved > 0


def test_flags() -> None:
    recipe = invaspread(
        small(batch_size=256, epochs=3), temperature=0.2, negatives_weight=2.0, detach_keys=False, projection=64
    )
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, spec.lr.peak) == (3, 0.06)
    assert spec.lr.with_peak(0.12)(at(120, 301, 256, 50_000)) == pytest.approx(0.012)
    assert "x 0.05 from 53%" in str(spec.lr)
    assert recipe.method.loss.keywords == {"temperature": 0.2, "weight": 2.0, "detach_keys": False}
    assert layers(recipe.method.projector) == ["512-64+b"]
    with pytest.raises(ValueError, match=r"--negatives-weight must be at least 1, not 0.5"):
        invaspread(small(), negatives_weight=0.5)
