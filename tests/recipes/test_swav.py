"""SwAV's recipe against its sheet."""

import jaxtyping
import pytest
import torch
from paper_size import layers, one_step, rendered
from torch.optim import Adam

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS, build_optimiser, set_rates_
from selfsight.keyed import Key
from selfsight.method import Clock
from selfsight.recipes.recipe import OptimiserSpec, Setting, skip_vectors
from selfsight.recipes.swav import swav
from selfsight.views import augment
from selfsight.views.view import Jitter


def clock(progress: float, epochs: int) -> Clock:
    steps = 1000 * epochs
    step = round(progress * steps)
    return Clock(step=step, steps=steps, epoch=min(step // 1000, epochs - 1), epochs=epochs)


def setting(size: int, **options: int) -> Setting:
    return Setting(encoder=build_encoder("small_cnn", image_size=32), image_size=size, samples=10**6, **options)


def first_group(spec: OptimiserSpec) -> dict:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = build_optimiser(spec, [("weight", weight)])
    set_rates_(optimiser, spec, clock(0.5, 100))
    return optimiser.param_groups[0] | {"kind": type(optimiser)}


def test_the_column_of_batch_256() -> None:
    recipe = swav(setting(224))
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (256, 200)
    assert spec.lr(clock(0, 200)) == pytest.approx(0.6)
    assert spec.lr(clock(1, 200)) == pytest.approx(0.0006)
    group = first_group(spec)
    assert group["kind"] is LARS
    assert (group["variant"], group["momentum"], group["clip"], group["adapt"]) == ("larc", 0.9, False, True)
    assert group["weight_decay"] == 1e-6
    assert (method.temperature, method.epsilon, method.iterations) == (0.1, 0.05, 3)
    assert method.prototypes.weight.shape == (3000, 128)
    assert [queue.keys.shape for queue in method.queues] == [(3840, 128)] * 2
    assert (method.queue_epoch, method.frozen_epochs) == (15, 1)
    views = recipe.views.views
    assert [(v.size, v.scale, v.interpolation) for v in views[:2]] == [(224, (0.14, 1.0), "bilinear")] * 2
    assert [(v.size, v.scale) for v in views[2:]] == [(96, (0.05, 0.14))] * 6
    assert all(v.blur.p == 0.5 and v.flip == 0.5 and v.grey == 0.2 for v in views)


def test_the_column_of_batch_4096() -> None:
    recipe = swav(setting(224, batch_size=4096))
    lr = recipe.optimisers["main"].lr
    assert lr(clock(0, 200)) == pytest.approx(0.3)
    assert lr(clock(10 / 200, 200)) == pytest.approx(4.8)
    assert lr(clock(1, 200)) == pytest.approx(0.0048)
    assert not recipe.method.queues
    assert recipe.method.frozen_epochs == 1


def test_two_crops_alone_take_wider_scales() -> None:
    views = swav(setting(224), small_crops=0).views.views
    assert [v.scale for v in views] == [(0.08, 1.0)] * 2


def test_the_small_image_column() -> None:
    recipe = swav(setting(32))
    group, lr = first_group(recipe.optimisers["main"]), recipe.optimisers["main"].lr
    assert (recipe.batch_size, recipe.epochs) == (128, 200)
    assert (group["kind"], group["weight_decay"]) == (Adam, 1e-6)
    assert (lr(clock(0, 200)), lr(clock(1, 200))) == (pytest.approx(1e-3), pytest.approx(0))
    assert recipe.method.prototypes.weight.shape == (512, 128)
    assert recipe.method.frozen_epochs == 0
    assert not recipe.method.queues
    views = recipe.views.views
    assert [(v.size, v.scale, v.blur) for v in views] == [(32, (0.14, 1.0), None)] * 2
    assert views[0].jitter == Jitter(0.4, 0.4, 0.4, 0.1, p=0.8)  # cifar10_benchmark.py: a strength of a half
    assert views[0].normalise.std == (0.229, 0.224, 0.225)
    assert [v.size for v in swav(setting(32), small_crops=4).views.views] == [32, 32, 16, 16, 16, 16]


def test_small_images_may_follow_solo_learn() -> None:
    """Sheet 13's other column, and scripts/pretrain/cifar/swav.yaml."""
    recipe = swav(setting(32), cifar="solo")
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.batch_size, recipe.epochs) == (256, 1000)
    assert spec.build.keywords == {"momentum": 0.9, "eta": 0.02, "variant": "larc", "clip": True}
    assert spec.groups is skip_vectors
    assert [spec.lr(clock(p, 1000)) for p in (0, 0.01, 1)] == pytest.approx([3e-5, 0.6, 0])
    assert spec.weight_decay(clock(0, 1000)) == 1e-6
    assert layers(method.projector) == ["256-2048+b", "bn[wb]", "ReLU", "2048-128+b"]
    assert method.prototypes.weight.shape == (3000, 128)
    assert [queue.keys.shape for queue in method.queues] == [(3840, 128)] * 2
    assert (method.queue_epoch, method.frozen_epochs) == (50, 2)
    assert recipe.views.views == (augment.small(32, kind="symmetric"),) * 2
    assert recipe.views.views[0].scale == (0.08, 1.0)
    more = swav(setting(32), cifar="solo", small_crops=1).views.views
    assert [(v.size, v.scale, v.blur.p) for v in more[1:]] == [(32, (0.14, 1.0), 0.5), (16, (0.05, 0.14), 0.5)]
    assert swav(setting(224), cifar="solo").epochs == 200  # large images have the paper's settings


def test_a_column_that_is_no_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user meets it, whom no type checker warns."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="--cifar is 'paper'; choose lightly or solo"):
        swav(setting(32), cifar="paper")  # type: ignore[arg-type]


def test_more_than_two_crops_may_be_assigned() -> None:
    """Sheet 13: ``crops_for_assign`` may list more than two; each has a queue of its own."""
    recipe = swav(setting(32), large_crops=3, small_crops=1, queue=128)
    assert [v.size for v in recipe.views.views] == [32, 32, 32, 16]
    assert len(recipe.method.queues) == 3
    index = torch.arange(4)
    x = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    key = Key(0, torch.zeros(4, dtype=torch.long), index)
    batch = recipe.views.render(x, recipe.views.plan(key), key)
    assert (len(batch.large), len(batch.small)) == (3, 1)
    objective = next(recipe.method.step(batch, clock(0, 200)))
    assert objective.watch["assignment"].shape == (3 * 4, 512)
    with pytest.raises(ValueError, match="--large-crops must be 2 or more, not 1"):
        swav(setting(32), large_crops=1, small_crops=2)


def test_a_queue_that_the_batch_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="--queue 1000 is not a multiple of the batch of 128; use 896"):
        swav(setting(32), queue=1000)


def test_the_authors_remedies_against_collapse() -> None:
    """README: a softer assignment, longer freezing, no batch norm in the head, hard assignments, milder crops."""
    for size, hidden in ((224, 2048), (32, 512)):
        recipe = swav(
            setting(size), epsilon=0.03, frozen_epochs=2, head_norm=False, hard_assignments=True, crop_boundary=0.3
        )
        method = recipe.method
        assert (method.epsilon, method.frozen_epochs, method.hard) == (0.03, 2, True)
        assert layers(method.projector) == [f"256-{hidden}+b", "ReLU", f"{hidden}-128+b"]
        assert {v.scale for v in recipe.views.views if v.size == size} == {(0.3, 1.0)}
        assert {v.scale for v in recipe.views.views if v.size != size} <= {(0.05, 0.3)}
    assert not swav(setting(32)).method.hard
    assert layers(swav(setting(224)).method.projector)[:2] == ["256-2048+b", "bn[wb]"]
    assert layers(swav(setting(32)).method.projector)[:2] == ["256-512", "bn[wb]"]


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ResNet-50, 2 x 224 + 6 x 96 pixels, 3000 prototypes, at batch 2."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=224)
    recipe = swav(Setting(encoder=encoder, image_size=224, samples=1_281_167))
    loss, moved = one_step(recipe, rendered(recipe), epoch=0)
    assert 5 < loss < 12  # log 3000 is 8.0
    assert moved > 0
