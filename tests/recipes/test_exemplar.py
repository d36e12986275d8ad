"""Exemplar-CNN's recipe against its sheet."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from paper_size import large, one_step, rendered, small
from torch import nn
from torch.optim import SGD

import selfsight
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.engine.run import open_run
from selfsight.keyed import subset
from selfsight.method import Clock
from selfsight.recipes import catalogue
from selfsight.recipes.exemplar import exemplar
from selfsight.recipes.recipe import Setting


def at(progress: float, steps: int = 3000) -> Clock:
    return Clock(step=round(progress * steps), steps=steps, epoch=0, epochs=1)


@pytest.mark.parametrize("setting", [small, large])
def test_the_papers_column(setting: object) -> None:
    recipe = exemplar(setting())  # pyright: ignore[reportCallIssue]
    spec = recipe.optimisers["main"]
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, SGD)
    assert (optimiser.param_groups[0]["momentum"], optimiser.param_groups[0]["nesterov"]) == (0.9, False)
    assert spec.weight_decay(at(0.5)) == 5e-4
    rates = [spec.lr(at(share)) for share in (0, 0.49, 0.5, 0.75, 0.9)]
    assert rates == pytest.approx([0.01, 0.01, 0.01 / 3, 0.01 / 9, 0.01 / 27])
    assert (recipe.batch_size, recipe.epochs) == (128, 1500)
    hidden, _, dropout, classes = recipe.method.head
    assert (hidden.out_features, dropout.p, classes.out_features) == (1024, 0.5, 8000)
    views = recipe.views
    assert (views.translation, views.scale, views.degrees, views.colours) == (0.2, (0.7, 1.4), 20.0, True)
    assert views.sides == (1 / 3, 2 / 3)


def test_each_class_is_an_image_of_its_own_the_same_for_every_run() -> None:
    recipe = exemplar(small())
    assert recipe.images is not None
    np.testing.assert_array_equal(recipe.images, subset(50_000, 8000, seed=0))
    assert len(np.unique(recipe.images)) == 8000
    again = exemplar(small(samples=8000))  # the run opened again: its images are those that were chosen
    assert again.images is None
    assert again.method.head[-1].out_features == 8000
    few = exemplar(small(samples=700))
    assert few.images is None
    assert few.method.head[-1].out_features == 700


def test_no_flag_has_a_name_that_a_run_gives_a_meaning_of_its_own() -> None:
    """``classes`` among a run's hyper-parameters are the names of a stage's classes (``engine.run``)."""
    assert "classes" not in catalogue.hyper_parameters("exemplar")


def test_the_rate_follows_the_batch() -> None:
    assert exemplar(small(batch_size=256)).optimisers["main"].lr(at(0)) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"dropout": 1.0}, "--dropout"), ({"surrogates": 0}, "--surrogates"), ({"smallest": 0.9}, "--smallest")],
)
def test_what_cannot_be_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        exemplar(small(), **wrong)


def test_a_transformer_serves_as_well() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    recipe = exemplar(Setting(encoder=encoder, image_size=32, samples=100, batch_size=4))
    loss, moved = one_step(recipe, rendered(recipe), epoch=0)
    assert loss == pytest.approx(math.log(100), abs=0.5)
    assert moved > 0


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    recipe = exemplar(large())
    loss, moved = one_step(recipe, rendered(recipe), epoch=0)
    assert loss == pytest.approx(math.log(8000), abs=0.5)
    assert moved > 0


def test_a_runs_pictures_are_of_its_surrogates(tmp_path: Path) -> None:
    run = selfsight.pretrain(
        "exemplar",
        data="world:40",
        image_size=32,
        backbone="tiny_cnn",
        surrogates=16,
        batch_size=8,
        epochs=1,
        device="cpu",
        out=tmp_path / "run",
    )
    source = open_run(run.path).source()
    images = exemplar(Setting(encoder=run.encoder(), image_size=32, samples=len(source)), surrogates=16).images
    assert images is not None
    shown = open_run(run.path).trained_on()
    assert [shown.where(k) for k in range(len(shown))] == [source.where(k) for k in images.tolist()]
    assert len(shown) == 16 < len(source)
