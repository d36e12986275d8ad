"""A method's own task on images that it was not trained on."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight import evaluate, pretrain
from selfsight.data.splits import divided, limited, origin
from selfsight.data.world import World
from selfsight.engine.run import OpenRun, open_run
from selfsight.errors import UserError
from selfsight.evaluation.pretext import last_update, task
from selfsight.evaluation.stream import Place

QUICK = {
    "data": "world:128",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "batch_size": 32,
    "epochs": 2,
    "precision": "32",
    "probe_every": 0,
    "report": False,
}


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    return pretrain("rotation", **QUICK, optimiser="adamw", out=tmp_path_factory.mktemp("pretext") / "run")


def test_the_task_is_measured_on_held_out_images_on_seen_ones_and_before_training(turned: OpenRun) -> None:
    result = evaluate(turned, protocols=["pretext"], quiet=True)["pretext"]
    found = result["task"]
    assert set(found) == {"trained", "seen", "untrained", "settings"}
    assert found["untrained"]["loss"] == pytest.approx(math.log(4), abs=0.15)
    assert found["trained"]["loss"] != found["seen"]["loss"]
    assert json.loads((turned.path / "evaluation" / "pretext.json").read_text())["task"] == found


def test_it_is_the_mean_of_the_methods_own_steps(turned: OpenRun) -> None:
    """Over whole batches, in evaluation mode, and without a change to the method."""
    recipe, test = turned.recipe(), limited(turned.source("train"), 64, seed=0)
    before = {name: value.clone() for name, value in recipe.method.state_dict().items()}
    whole = task(recipe, test, clock=last_update(turned), batch=64, seed=3, place=Place())
    half = task(recipe, test, clock=last_update(turned), batch=32, seed=3, place=Place())
    assert half["loss"] == pytest.approx(whole["loss"], rel=1e-5)  # batch norm would differ if it looked at the batch
    assert all(torch.equal(value, before[name]) for name, value in recipe.method.state_dict().items())


def test_what_a_run_was_trained_on_is_not_held_out(tmp_path: Path) -> None:
    """Without labels a fifth of all images is the test, and a run may have been trained on it."""
    for k, image in enumerate(World(40, size=32, split="train").read_many(np.arange(40))):
        Image.fromarray(np.asarray(image).transpose(1, 2, 0)).save(tmp_path / f"{k}.png")
    how = {**QUICK, "data": str(tmp_path), "epochs": 1, "batch_size": 16}
    whole = pretrain("rotation", **how, out=tmp_path / "runs" / "whole")
    with pytest.raises(UserError, match="so none is held out; give --data with others"):
        evaluate(whole, protocols=["pretext"], quiet=True)
    part = pretrain("rotation", **how, limit=24, out=tmp_path / "runs" / "part")
    fifth, (_, seen) = divided(whole.source("all"))[1], origin(part.trained_on())
    assert seen is not None
    new = set(origin(fifth)[1].tolist()) - set(seen.tolist())  # type: ignore[union-attr]
    assert 0 < len(new) < len(fifth) == 8, "the case is not empty"
    found = evaluate(part, protocols=["pretext"], quiet=True)["pretext"]["task"]
    assert found["settings"]["images"] == len(new)


def test_where_its_images_are_gone_others_are_enough(turned: OpenRun, tmp_path: Path) -> None:
    own = evaluate(turned, protocols=["pretext"], quiet=True)["pretext"]["task"]
    moved = tmp_path / "moved"
    shutil.copytree(turned.path, moved)
    text = (moved / "run.yaml").read_text()
    assert text.count("data: world:128") == 1
    (moved / "run.yaml").write_text(text.replace("data: world:128", "data: gone/away"))
    found = evaluate(moved, protocols=["pretext"], data="world:128", quiet=True)["pretext"]["task"]
    assert set(found) == {"trained", "untrained", "settings"}
    assert found["trained"] == pytest.approx(own["trained"])


def test_a_method_that_knows_its_images_one_by_one_says_so(tmp_path: Path) -> None:
    run = pretrain("instdisc", **QUICK, out=tmp_path / "run")
    with pytest.raises(UserError, match="instdisc knows its training images one by one"):
        evaluate(run, protocols=["pretext"], quiet=True)


def test_an_encoder_alone_has_no_task(turned: OpenRun) -> None:
    with pytest.raises(UserError, match="give the run, not its encoder"):
        evaluate(open_run(turned.path).encoder(), protocols=["pretext"], data="world:128", quiet=True)
