"""MoCo's recipes against the tables of sheets 16 and 17."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from paper_size import at, large, layers, one_step, scopes, small
from torch.optim import SGD

from selfsight.recipes.moco import moco_v1, moco_v2
from selfsight.recipes.recipe import Recipe
from selfsight.views import augment


@pytest.mark.slow
def test_paper_v1() -> None:
    recipe = moco_v1(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    rates = [spec.lr(at(epoch, 200, 256)) for epoch in (0, 119.9, 120.1, 159.9, 160.1)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003])
    assert spec.weight_decay(at(0, 200, 256)) == 1e-4
    assert layers(method.projector) == ["2048-128+b"]
    assert [q.keys.shape for q in method.queues] == [(65536, 128)]
    assert (method.temperature, method.momentum(at(100, 200, 256)), method.symmetric) == (0.07, 0.999, False)
    assert scopes(method) == {32}
    assert recipe.views.views == (augment.moco_v1(224),) * 2
    loss, moved = one_step(recipe)
    assert loss > 0
    assert moved > 0
    assert int(method.queues[0].pointer) == 2


@pytest.mark.slow
def test_paper_v2() -> None:
    recipe = moco_v2(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    for epoch in (0, 50, 100, 199):
        expected = 0.03 * (1 + math.cos(math.pi * epoch / 200)) / 2
        assert spec.lr(at(epoch, 200, 256)) == pytest.approx(expected, rel=1e-6)
    assert spec.weight_decay(at(0, 200, 256)) == 1e-4
    assert layers(method.projector) == ["2048-2048+b", "ReLU", "2048-128+b"]
    assert [q.keys.shape for q in method.queues] == [(65536, 128)]
    assert (method.temperature, method.momentum(at(100, 200, 256)), method.symmetric) == (0.2, 0.999, False)
    assert scopes(method) == {32}
    assert recipe.views.views == (augment.moco_v2(224),) * 2
    loss, moved = one_step(recipe)
    assert loss > 0
    assert moved > 0


def test_v1_on_small_images_follows_the_official_notebook() -> None:
    recipe = moco_v1(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 512)
    assert spec.lr(at(0, 200, 512, 50_000)) == pytest.approx(0.06)
    assert spec.lr(at(100, 200, 512, 50_000)) == pytest.approx(0.03)
    assert spec.weight_decay(at(0, 200, 512, 50_000)) == 5e-4
    assert layers(method.projector) == ["512-128+b"]
    assert [len(q.keys) for q in method.queues] == [4096]
    assert (method.temperature, method.momentum(at(0, 200, 512))) == (0.1, 0.99)
    assert scopes(method) == {64}  # 8 splits of 512
    view = replace(augment.moco_v2(32, blur=False, scale=(0.08, 1.0)), normalise=augment.CIFAR10_BY_IMAGE)
    assert view.normalise.std == (0.2023, 0.1994, 0.2010)
    assert recipe.views.views == (view, view)


def test_v2_on_small_images_follows_solo_learns_v2_plus() -> None:
    recipe = moco_v2(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 256)
    assert spec.lr(at(0, 1000, 256, 50_000)) == pytest.approx(3e-5)
    assert spec.lr(at(10, 1000, 256, 50_000)) == pytest.approx(0.3)
    assert spec.weight_decay(at(0, 1000, 256, 50_000)) == 1e-4
    assert layers(method.projector) == ["512-2048+b", "ReLU", "2048-256+b"]
    assert [len(q.keys) for q in method.queues] == [32768, 32768]
    momenta = [method.momentum(at(epoch, 1000, 256, 50_000)) for epoch in (0, 1000)]
    assert momenta == pytest.approx([0.99, 0.999])
    assert (method.temperature, method.symmetric, scopes(method)) == (0.2, True, {"all"})
    assert recipe.views.views == (augment.small(32, kind="symmetric_weak"),) * 2


def test_the_queue_is_a_multiple_of_the_batch_and_no_longer_than_the_data() -> None:
    assert len(moco_v1(small(samples=3000, batch_size=100)).method.queues[0].keys) == 3000
    assert len(moco_v1(small(batch_size=100)).method.queues[0].keys) == 4000
    assert len(moco_v1(small(samples=10, batch_size=64)).method.queues[0].keys) == 64
    assert len(moco_v1(small(batch_size=100), queue=300).method.queues[0].keys) == 300
    with pytest.raises(ValueError, match="--queue 350 is not a multiple of the batch of 100; use 300"):
        moco_v1(small(batch_size=100), queue=350)


def test_groups_of_batch_norm_divide_the_batch() -> None:
    for batch, group in ((256, 32), (128, 16), (64, 16), (100, 20), (97, 97), (8, 8), (1, 2)):
        assert scopes(moco_v1(small(batch_size=batch, encoder=small().encoder)).method) == {group}


@pytest.mark.parametrize("recipe", [moco_v1, moco_v2])
def test_the_groups_of_batch_norm_are_a_choice(recipe: Callable[..., Recipe]) -> None:
    """Sheet 17: shuffled groups, or one group over everything."""
    for size in (32, 224):
        for groups, scope in ((1, "all"), (4, 64), (8, 32)):
            assert scopes(recipe(small(image_size=size, batch_size=256), norm_groups=groups).method) == {scope}
    for groups in (0, 3, 256):
        with pytest.raises(ValueError, match=f"--norm-groups {groups} does not divide the batch of 256"):
            recipe(small(batch_size=256), norm_groups=groups)


def test_flags() -> None:
    recipe = moco_v2(small(image_size=224), temperature=0.3, momentum=0.5, projection=32, symmetric=True, queue=512)
    method = recipe.method
    assert (method.temperature, method.momentum(at(7, 200, 256)), len(method.queues)) == (0.3, 0.5, 2)
    assert method.queues[0].keys.shape == (512, 32)
