"""NNCLR's recipe against the paper's settings and solo-learn's."""

import pytest
from paper_size import at, large, layers, one_step, scopes, small

from selfsight.engine.optimisers import LARS
from selfsight.recipes.nnclr import nnclr
from selfsight.recipes.recipe import skip_vectors
from selfsight.views import augment

HEADS = (
    ["2048-2048", "bn[wb]", "ReLU", "2048-2048", "bn[wb]", "ReLU", "2048-256", "bn[wb]"],
    ["256-4096", "bn[wb]", "ReLU", "4096-256+b"],
)


@pytest.mark.slow
def test_paper() -> None:
    recipe = nnclr(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 4096)
    assert (spec.build.func, spec.build.keywords) == (LARS, {"momentum": 0.9, "eta": 1e-3, "variant": "simclr"})
    assert spec.groups is skip_vectors
    assert spec.lr(at(0, 1000, 4096)) == 0
    assert spec.lr(at(10, 1000, 4096)) == pytest.approx(0.3 * 16)
    assert spec.lr(at(1000, 1000, 4096)) == pytest.approx(0, abs=1e-9)
    assert spec.weight_decay(at(3, 1000, 4096)) == 1e-6
    assert (layers(method.projector), layers(method.predictor)) == HEADS
    assert method.queue.keys.shape == (98304, 256)
    assert method.temperature == 0.1
    assert scopes(method) == {"all"}
    assert recipe.views.views == (augment.byol(224, view=1), augment.byol(224, view=2))
    loss, moved = one_step(recipe)
    assert loss > 0
    assert moved > 0
    assert int(method.queue.pointer) == 2


def test_small_images_follow_solo_learn() -> None:
    recipe = nnclr(small(samples=100_000))
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (1000, 256)
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.lr(at(0, 1000, 256, 50_000)) == pytest.approx(3e-5)
    assert spec.lr(at(10, 1000, 256, 50_000)) == pytest.approx(0.4)
    assert spec.weight_decay(at(0, 1000, 256, 50_000)) == 1e-5
    assert layers(method.projector)[0] == "512-2048"
    assert (layers(method.projector)[1:], layers(method.predictor)) == (HEADS[0][1:], HEADS[1])
    assert (len(method.queue.keys), method.temperature) == (65536, 0.2)
    assert recipe.views.views == tuple(augment.small(32, kind="asymmetric", view=view) for view in (1, 2))


def test_the_queue_is_a_multiple_of_the_batch_and_no_longer_than_the_data() -> None:
    def length(samples: int, batch: int, queue: int | None = None) -> int:
        recipe = nnclr(small(samples=samples, batch_size=batch), queue=queue, hidden=8, predictor_hidden=8)
        return len(recipe.method.queue.keys)

    assert [length(50_000, 256), length(3000, 100), length(10, 64), length(3000, 100, 500)] == [49_920, 3000, 64, 500]
    with pytest.raises(ValueError, match="--queue 350 is not a multiple of the batch of 100; use 300"):
        length(3000, 100, 350)
    with pytest.raises(ValueError, match="--queue must be greater than 0, not 0"):
        length(3000, 100, 0)


def test_flags() -> None:
    recipe = nnclr(small(), temperature=0.3, projection=16, hidden=32, predictor_hidden=64, queue=512)
    assert recipe.method.temperature == 0.3
    assert layers(recipe.method.projector)[-2:] == ["32-16", "bn[wb]"]
    assert layers(recipe.method.predictor) == ["16-64", "bn[wb]", "ReLU", "64-16+b"]
    assert recipe.method.queue.keys.shape == (512, 16)
