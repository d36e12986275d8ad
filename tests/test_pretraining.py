"""``pretrain`` from Python: what a run hands over, what it begins with, and labels and data that are not as usual."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import selfsight
from selfsight.engine.export import export
from selfsight.engine.run import open_run
from selfsight.errors import UserError
from selfsight.pretraining import pretrain
from selfsight.recipes import catalogue

QUICK: dict[str, Any] = {
    "data": "world:128",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "batch_size": 32,
    "epochs": 1,
    "precision": "32",
    "probe_every": 0,
    "report": False,
}


def pictures(folder: Path, count: int, classes: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for k in range(count):
        target = folder / f"class{k % classes}" / f"{k}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(target)
    return folder


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["method"]


@pytest.mark.parametrize("method", ["dino", "byol"])
def test_what_is_handed_over_is_the_methods_own_choice(method: str, tmp_path: Path) -> None:
    """DINO's teacher, BYOL's online network."""
    run = pretrain(method, **QUICK, out=tmp_path / "run")
    state = state_of(run.path)
    saved = load_file(run.path / "encoder.safetensors")
    for key, weight in saved.items():
        chosen = state.get(f"encoder.model.{key}", state.get(f"encoder.{key}"))
        assert chosen is not None, key
        assert torch.equal(chosen, weight), key
    if method == "dino":
        assert any(
            not torch.equal(state[key], state[key.replace("encoder.", "student.", 1)])
            for key in state
            if key.startswith("encoder.") and key.endswith("weight")
        )


def test_a_target_begins_where_the_encoder_does(tmp_path: Path) -> None:
    """``--init-from`` another method: the momentum target is a copy of the encoder that was given."""
    first = pretrain("simclr", **QUICK, out=tmp_path / "first")
    second = pretrain("byol", **{**QUICK, "lr": 1e-12}, out=tmp_path / "second", init_from=first.path, momentum=0.5)
    given, state = state_of(first.path), state_of(second.path)
    weights = [key for key in given if key.startswith("encoder.") and key.endswith("conv1.weight")]
    assert weights
    for key in weights:
        target = next(k for k in state if k.startswith("target") and k.endswith(key.removeprefix("encoder.")))
        torch.testing.assert_close(state[target], given[key], atol=1e-4, rtol=0)


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    first = pretrain("simclr", **QUICK, out=tmp_path / "first")
    with pytest.raises(UserError, match="does not fit small_cnn at 32 px"):
        pretrain("byol", **{**QUICK, "backbone": "small_cnn"}, out=tmp_path / "second", init_from=first.path)


def test_fewer_images_than_the_papers_batch(tmp_path: Path) -> None:
    said: list[str] = []
    flags = {**QUICK, "batch_size": None, "data": "world:100"}
    run = pretrain("simclr", **flags, out=tmp_path / "run", say=said.append)
    assert run.settings["resolved"]["batch_size"] == 8
    assert run.settings["resolved"]["optimisers"]["main"]["lr"].endswith("to 0.03125, cosine")  # 8 / 256
    assert "the paper's batch of 512 is larger than the data, 100 images: taking 8" in said
    with pytest.raises(UserError, match="the batch of 128 is larger than the data"):
        pretrain("simclr", **{**flags, "batch_size": 128}, out=tmp_path / "other")


def test_labels_of_some_images_only(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 40)
    labels = tmp_path / "labels.csv"
    known = sorted(folder.rglob("*.png"))[::2]
    with open(labels, "w", newline="") as out:
        csv.writer(out).writerows([["path", "label"], *([p.relative_to(folder), p.parent.name] for p in known)])
    flags = {**QUICK, "data": folder, "batch_size": 16, "labels": labels, "probe_every": 1}
    run = pretrain("simclr", **flags, out=tmp_path / "run")
    assert run.finished
    with open(run.path / "metrics.csv", newline="") as lines:
        assert any(row["knn"] for row in csv.DictReader(lines))


def test_fewer_images_than_neighbours(tmp_path: Path) -> None:
    flags = {**QUICK, "data": pictures(tmp_path / "images", 16), "batch_size": 8, "probe_every": 1}
    assert pretrain("simclr", **flags, out=tmp_path / "run").finished


def test_a_refused_call_deletes_nothing(tmp_path: Path) -> None:
    run = pretrain("simclr", **QUICK, out=tmp_path / "run")
    before = (run.path / "encoder.safetensors").read_bytes()
    with pytest.raises(UserError, match="--precision 16 needs a GPU"):
        pretrain("simclr", **{**QUICK, "precision": "16"}, out=run.path, overwrite=True)
    with pytest.raises(UserError, match="--channels is 1, but the images of world have 3"):
        pretrain("simclr", **QUICK, channels=1, out=run.path, overwrite=True)
    assert (run.path / "encoder.safetensors").read_bytes() == before


def test_a_flag_that_is_given_is_compared_even_where_it_is_the_default(tmp_path: Path) -> None:
    run = pretrain("simclr", **QUICK, seed=3, out=tmp_path / "run", max_time="0.01s")
    assert not run.finished
    with pytest.raises(UserError, match="--seed 3 -> 0"):
        pretrain("simclr", seed=0, out=run.path, resume=True)
    assert pretrain("simclr", out=run.path, resume=True).finished


def test_a_run_that_has_not_ended_is_exported_from_its_checkpoint(tmp_path: Path) -> None:
    run = pretrain("simclr", **QUICK, out=tmp_path / "run", max_time="0.01s")
    state = state_of(run.path)
    folder = export(run.path, "safetensors", tmp_path / "out")
    weights = load_file(folder / "encoder.safetensors")
    assert all(torch.equal(weights[k], state.get(f"encoder.model.{k}", state.get(f"encoder.{k}"))) for k in weights)


def test_best_is_the_checkpoint_of_the_best_probe(tmp_path: Path) -> None:
    run = pretrain("simclr", **{**QUICK, "probe_every": 1, "epochs": 2}, out=tmp_path / "run")
    best = torch.load(run.path / "checkpoints" / "best.pt", weights_only=True)["method"]
    encoder = selfsight.load(run.path, "best")
    assert all(torch.equal(best[f"encoder.{key}"], weight) for key, weight in encoder.state_dict().items())


def test_data_that_only_the_program_has(tmp_path: Path) -> None:
    images = TensorDataset(torch.randint(0, 255, (64, 3, 32, 32), dtype=torch.uint8))
    run = pretrain("simclr", **{**QUICK, "data": images}, out=tmp_path / "run")
    assert run.finished
    assert open_run(run.path).settings["flags"]["data"] == "python:TensorDataset"
    with pytest.raises(UserError, match="devices above 1"):
        pretrain("simclr", **{**QUICK, "data": images}, devices=2, out=tmp_path / "two")


@pytest.mark.parametrize("method", list(catalogue.cards()))
def test_hyper_parameters_of_zero_are_refused_not_replaced(method: str, tmp_path: Path) -> None:
    positive = {"temperature", "projection", "outputs", "prototypes", "hidden", "decoder_depth", "weight"}
    for name in positive & set(catalogue.hyper_parameters(method)):
        flags = QUICK if method != "mae" else {**QUICK, "backbone": None}
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be greater than 0, not 0"):
            pretrain(method, **flags, out=tmp_path / "run", **{name: 0})
