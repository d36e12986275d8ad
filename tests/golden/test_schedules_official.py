"""The recipes' schedules, at their papers' settings, against values of the official code."""

from typing import Any

import pytest
from recorded import Pooled, recorded, same
from torch import nn

from selfsight.encoders.build import build_encoder
from selfsight.method import Clock, Schedule
from selfsight.recipes import barlow_twins, byol, dino, mae, moco, moco_v3, simsiam, swav, vicreg
from selfsight.recipes.recipe import Recipe, Setting

OFFICIAL = recorded("schedules")
AN_EPOCH = 5
"""Updates of an epoch, where the code's schedule moves with every update."""


def setting(*, epochs: int | None = None, batch: int | None = None, transformer: bool = False) -> Setting:
    encoder: Any = Pooled()
    if transformer:
        encoder = build_encoder("vit_tiny_patch16_224", image_size=112, embed_dim=16, depth=1, num_heads=1)
    return Setting(encoder=encoder, image_size=112, samples=1_280_000, epochs=epochs, batch_size=batch)


def values(schedule: Schedule, recipe: Recipe[Any], at: list[int], an_epoch: int = AN_EPOCH) -> list[float]:
    steps = recipe.epochs * an_epoch
    return [schedule(Clock(step=k, steps=steps, epoch=k // an_epoch, epochs=recipe.epochs)) for k in at]


def test_moco_at_the_start_of_each_epoch() -> None:
    """The code's rate stands still within an epoch."""
    for name, recipe in (("moco_v1", moco.moco_v1(setting())), ("moco_v2", moco.moco_v2(setting()))):
        same(values(recipe.optimisers["main"].lr, recipe, OFFICIAL[name]["epochs"], 1), OFFICIAL[name]["rates"])


def test_simsiam_at_the_start_of_each_epoch() -> None:
    case, recipe = OFFICIAL["simsiam"], simsiam.simsiam(setting(), projection=8, bottleneck=4)
    main = recipe.optimisers["main"]
    moving, fixed = zip(*case["rates"], strict=True)
    same(values(main.lr, recipe, case["epochs"], 1), moving)
    assert set(fixed) == {main.lr.peak}
    weight = nn.Parameter()
    assert main.groups("predictor.0.weight", weight).fixed_lr
    assert not main.groups("projector.0.weight", weight).fixed_lr


def test_moco_v3() -> None:
    case, recipe = OFFICIAL["moco_v3"], moco_v3.moco_v3(setting(transformer=True), projection=8, hidden=8)
    same(values(recipe.optimisers["main"].lr, recipe, case["steps"]), case["rates"])
    same(values(recipe.method.momentum, recipe, case["steps"]), case["momenta"])


def test_byol() -> None:
    """The code's warm-up divides in float32."""
    case, recipe = OFFICIAL["byol"], byol.byol(setting(), projection=8, hidden=8)
    same(values(recipe.optimisers["main"].lr, recipe, case["steps"]), case["rates"], rtol=1e-7)
    same(values(recipe.method.momentum, recipe, case["steps"]), case["momenta"])


def test_barlow_twins() -> None:
    case, recipe = OFFICIAL["barlow_twins"], barlow_twins.barlow_twins(setting(), projection=8)
    main = recipe.optimisers["main"]
    weights, biases = zip(*case["rates"], strict=True)
    ours = values(main.lr, recipe, case["steps"])
    same(ours, weights)
    bias = recipe.method.encoder.layer.bias
    same([main.groups("bias", bias).lr_scale * rate for rate in ours], biases)


def test_vicreg() -> None:
    case, recipe = OFFICIAL["vicreg"], vicreg.vicreg(setting(), projection=8)
    same(values(recipe.optimisers["main"].lr, recipe, case["steps"]), case["rates"])


def test_mae() -> None:
    case, recipe = OFFICIAL["mae"], mae.mae(setting(transformer=True), decoder_width=32, decoder_depth=1)
    same(values(recipe.optimisers["main"].lr, recipe, case["steps"]), case["rates"])


def shifted(rates: list[float], at: list[int], *, start: float, warmup: int) -> list[float]:
    """Warm-ups of SwAV's and DINO's code reach the peak with their last step, ours with the first step after it."""
    return [start + (r - start) * (warmup - 1) / warmup if k < warmup else r for k, r in zip(at, rates, strict=True)]


def test_swav() -> None:
    case = OFFICIAL["swav"]
    recipe = swav.swav(setting(epochs=800, batch=4096), prototypes=8, projection=8)
    theirs = shifted(case["rates"], case["steps"], start=0.3, warmup=10 * AN_EPOCH)
    same(values(recipe.optimisers["main"].lr, recipe, case["steps"]), theirs)


def test_dino() -> None:
    case, recipe = OFFICIAL["dino"], dino.dino(setting(transformer=True), outputs=8, drop_path=0.0)
    main = recipe.optimisers["main"]
    theirs = shifted(case["rates"], case["steps"], start=0.0, warmup=10 * AN_EPOCH)
    same(values(main.lr, recipe, case["steps"]), theirs)
    same(values(main.weight_decay, recipe, case["steps"]), case["decays"])
    same(values(recipe.method.momentum, recipe, case["steps"]), case["momenta"])


def test_the_teachers_temperature_of_an_epoch_lies_between_ours_at_its_ends() -> None:
    """The code changes it once an epoch and reaches the last with the thirtieth, ours changes with every update."""
    theirs = OFFICIAL["dino"]["temperatures"]
    recipe = dino.dino(setting(transformer=True), outputs=8, drop_path=0.0, teacher_temperature=0.07)
    ours = values(recipe.method.teacher_temperature, recipe, [AN_EPOCH * k for k in range(len(theirs) + 1)])
    for epoch, value in enumerate(theirs):
        assert ours[epoch] - 1e-12 <= value <= ours[epoch + 1] + 1e-12
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    assert ours[30] == pytest.approx(theirs[29], rel=1e-12)
