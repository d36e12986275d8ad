"""PIC's recipe against sheet 9's table."""

import math
from dataclasses import replace

import pytest
from paper_size import IMAGENET, at, large, layers, one_step, rendered, scopes, small
from torch.optim import SGD, AdamW

from selfsight.data.order import Shuffled, SlidingWindow
from selfsight.engine.optimisers import LateSGD
from selfsight.flags import Flags
from selfsight.recipes.assembly import assemble
from selfsight.recipes.pic import pic
from selfsight.recipes.recipe import Group
from selfsight.views import augment
from selfsight.views.view import IMAGENET as NORMALISE


@pytest.mark.slow
def test_paper() -> None:
    recipe = pic(large())
    main, classes, method = recipe.optimisers["main"], recipe.optimisers["classes"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert (main.build.func, main.build.keywords) == (SGD, {"momentum": 0.9})
    assert (classes.build.func, classes.build.keywords) == (LateSGD, {"momentum": 0.9})
    for spec in (main, classes):
        assert spec.lr(at(0, 200, 256)) == pytest.approx(0.0003)
        assert spec.lr(at(2.5, 200, 256)) == pytest.approx((0.0003 + 0.03) / 2, rel=1e-3)
        assert spec.lr(at(5, 200, 256)) == pytest.approx(0.03)
        assert spec.lr(at(102.5, 200, 256)) == pytest.approx(0.015, rel=1e-3)
        assert spec.lr(at(200, 200, 256)) == pytest.approx(1e-6)
        assert spec.weight_decay(at(3, 200, 256)) == 1e-4
        assert spec.groups("classes.weight", method.classes.weight) == Group()
    assert layers(method.projector) == ["2048-2048+b", "ReLU", "2048-128+b"]
    assert method.classes.weight.shape == (IMAGENET, 128)
    assert method.classes.weight[:10_000].std().item() == pytest.approx(0.01, rel=0.01)
    assert (method.temperature, len(method.recent)) == (0.2, 65536)
    assert recipe.order == SlidingWindow(131072, 16384)
    assert scopes(method) == {"rank"}
    (view,) = recipe.views.views
    assert view == replace(augment.swav(224, scale=(0.08, 1.0)), normalise=NORMALISE)
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss == pytest.approx(math.log(65536), abs=1.5)
    assert moved > 0
    state = method.classes.weight.grad
    assert state.is_sparse
    assert state.indices().shape == (1, 65536)


def test_multi_crop_is_the_official_runs() -> None:
    recipe = pic(small(image_size=160, samples=300_000), small_crops=3)
    one, *others = recipe.views.views
    assert (one.size, one.scale) == (160, (0.14, 1.0))
    assert [(view.size, view.scale) for view in others] == [(96, (0.08, 0.14))] * 3
    batch = rendered(recipe)
    assert ([len(batch.large), len(batch.small)], batch.large[0].shape) == ([1, 3], (2, 3, 160, 160))


def test_small_images() -> None:
    recipe = pic(small())
    assert (recipe.epochs, recipe.batch_size, recipe.order) == (200, 128, Shuffled())
    assert len(recipe.method.recent) == 50_000
    assert recipe.optimisers["main"].lr.peak == 0.015
    assert layers(recipe.method.projector) == ["512-2048+b", "ReLU", "2048-128+b"]


@pytest.mark.parametrize("own", [None, 0.5])
def test_flags_for_the_network_leave_the_classes_their_late_updates(own: float | None) -> None:
    """Their weights meet their images once a round, whatever trains the network."""
    flags = Flags(backbone="tiny_cnn", batch_size=32, optimiser="adamw", lr=4e-3, weight_decay=0.1)
    hyper = {} if own is None else {"classes_lr": own}
    recipe, now = assemble("pic", flags, hyper, samples=64, native=(3, 32, 32)).recipe, at(5, 200, 32, 64)
    main, classes = recipe.optimisers["main"], recipe.optimisers["classes"]
    assert (main.build, main.lr.peak, main.weight_decay(now)) == (AdamW, 4e-3, 0.1)
    assert (classes.build.func, classes.build.keywords) == (LateSGD, {"momentum": 0.9})
    assert classes.lr(now) == pytest.approx(own or 0.03 * 32 / 256)
    assert classes.weight_decay(now) == 1e-4


def test_flags() -> None:
    recipe = pic(
        small(epochs=400, batch_size=64),
        temperature=0.1,
        recent=1000,
        window=5000,
        stride=500,
        projection=32,
        hidden=99,
    )
    method = recipe.method
    assert (method.temperature, len(method.recent), recipe.order) == (0.1, 1000, SlidingWindow(5000, 500))
    assert layers(method.projector) == ["512-99+b", "ReLU", "99-32+b"]
    assert "warm-up 10 epochs" in str(recipe.optimisers["main"].lr)
    for options, message in (
        ({"recent": 100}, "the batch of 128 is larger than --recent 100"),
        ({"window": 100}, "--window 100"),
        ({"window": 1000, "stride": 2000}, "a window of 1000 images cannot slide by 2000"),
    ):
        with pytest.raises(ValueError, match=message):
            pic(small(), **options)
