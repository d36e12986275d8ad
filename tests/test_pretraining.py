"""``pretrain`` from Python: what a run hands over, what it begins with, and labels and data that are not as usual."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import selfsight
from selfsight.encoders import build
from selfsight.encoders.build import build_encoder
from selfsight.engine.export import export
from selfsight.engine.lock import alone
from selfsight.engine.run import open_run, shape_in, write_settings
from selfsight.engine.start import _shape_of, same_data
from selfsight.errors import UserError
from selfsight.pretraining import pretrain
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import Shape

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


def swin(folder: Path, **options: Any) -> str:
    """A small Swin by name, whose windows have 7 patches unless told."""
    arguments = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    model = {"architecture": "swin_tiny_patch4_window7_224", "model_args": {**arguments, **options}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**model, "pretrained_cfg": {}}))
    return f"local-dir:{folder}"


def same_encoder(run: Path, other: Path) -> None:
    mine, theirs = load_file(run / "encoder.safetensors"), load_file(other / "encoder.safetensors")
    assert mine.keys() == theirs.keys()
    for key, weight in theirs.items():
        torch.testing.assert_close(mine[key], weight, atol=1e-4, rtol=0, msg=key)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("method", "size", "window"), [("simmim_swin", 32, 7), ("localmim_swin", 48, 3)])
def test_a_swin_goes_on_with_the_windows_that_it_was_trained_with(
    method: str, size: int, window: int, named: bool, tmp_path: Path
) -> None:
    """Begun, stopped, resumed and opened, where they were made to fit the map and where another size would fit too."""
    flags = {**QUICK, "data": "world:32", "batch_size": 16, "image_size": size}
    first = pretrain(method, **flags | {"backbone": swin(tmp_path / "its", window_size=window)}, out=tmp_path / "first")
    usual = swin(tmp_path / "usual") if named else None
    again = {**flags, "backbone": usual, "lr": 1e-12, "out": tmp_path / "second"}
    begun = pretrain(method, **again, init_from=first.path, max_time="0.001s")
    assert not begun.finished
    run = pretrain(method, **again, resume=True)
    assert run.finished
    same_encoder(run.path, first.path)
    assert begun.settings["resolved"] == run.settings["resolved"]
    options = selfsight.load(first.path).options | ({} if named else {"drop_path_rate": 0.0})  # the recipe's own
    assert selfsight.load(run.path).options == options
    assert run.recipe().method.encoder.options == options
    assert open_run(run.path).settings["resolved"]["backbone_options"]["window_size"] == options["window_size"]


def test_a_stopped_training_from_published_swin_weights_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(name: str, pretrained: bool, arguments: dict[str, Any]) -> torch.nn.Module:
        model = created(name, False, arguments)
        for table in (p for key, p in model.named_parameters() if pretrained and key.endswith("bias_table")):
            torch.nn.init.constant_(table, 0.25)
        return model

    created = build._create
    monkeypatch.setattr(build, "_create", published)
    flags = {**QUICK, "data": "world:32", "batch_size": 16, "backbone": swin(tmp_path / "swin"), "lr": 1e-12}
    out = tmp_path / "run"
    assert not pretrain("simmim_swin", **flags, pretrained=True, out=out, max_time="0.001s").finished
    run = pretrain("simmim_swin", **flags, out=out, resume=True)
    tables = [x for key, x in load_file(run.path / "encoder.safetensors").items() if key.endswith("bias_table")]
    assert [len(table) for table in tables] == [49, 49]
    assert all((table - 0.25).abs().max() < 1e-4 for table in tables)
    assert run.recipe().method.encoder.window == 4


def test_the_backbone_is_that_of_the_run_it_begins_with(tmp_path: Path) -> None:
    """Where the call names none; opened again without that run, and tuned on labels."""
    flags = {**QUICK, "lr": 1e-12}
    first = pretrain("rotation", **flags, out=tmp_path / "first")
    second = pretrain("simclr", **{**flags, "backbone": None}, out=tmp_path / "second", init_from=first.path)
    same = {"backbone": "tiny_cnn", "image_size": 32}
    assert same.items() <= second.settings["resolved"].items()
    (tmp_path / "first").rename(tmp_path / "gone")
    assert second.recipe().method.encoder.name == "tiny_cnn"
    how = {"epochs": 1, "batch_size": 32, "report": False, "precision": "32"}
    tuned = selfsight.finetune(second.path, out=tmp_path / "tuned", **how)
    assert tuned.settings["resolved"]["backbone"] == "tiny_cnn"
    student = selfsight.distill(tuned.path, out=tmp_path / "student", **how)
    assert student.settings["resolved"]["backbone"] == "tiny_cnn"


def test_what_the_begun_runs_method_chose_for_itself_is_not_taken_over(tmp_path: Path) -> None:
    """The mean of the patches where no class token is trained, and drop path; a student has the patches, though."""
    flags = {**QUICK, "backbone": "test_vit", "patch_size": 8, "lr": 1e-12}
    first = pretrain("simmim", **flags, out=tmp_path / "first")
    options = first.encoder().options
    assert options["global_pool"] == "avg"
    second = pretrain(
        "dino", **{**flags, "backbone": None, "patch_size": None}, out=tmp_path / "second", init_from=first.path
    )
    assert second.encoder().model.global_pool == "token"
    assert second.settings["resolved"]["backbone_options"] == {"patch_size": 8}
    how = {"epochs": 1, "batch_size": 32, "report": False, "precision": "32"}
    tuned = selfsight.finetune(second.path, out=tmp_path / "tuned", head_layers=0, **how)
    student = selfsight.distill(tuned.path, out=tmp_path / "student", **how)
    assert student.encoder().patch == 8

    windows = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "drop_path_rate": 0.1}
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=32, **windows)  # type: ignore[arg-type]
    assert "drop_path_rate" not in _shape_of(encoder, Shape("resnet18", {})).options
    chosen = _shape_of(encoder, Shape("swin_tiny_patch4_window7_224", {"drop_path_rate": 0.3, "depths": (2, 2)}))
    assert (chosen.options["drop_path_rate"], chosen.options["depths"]) == (0.3, (1, 1))


def test_an_encoder_from_elsewhere_is_not_fetched_for_a_strangers_run() -> None:
    settings = {"flags": {"init_from": "runs/first"}, "resolved": {"backbone": "hf-hub:some/model"}}
    with pytest.raises(UserError, match="names the encoder hf-hub:some/model, which is none of"):
        shape_in(settings)
    settings["flags"]["backbone"] = "hf-hub:some/model"  # as the call that began the run named it
    assert shape_in(settings) == Shape("hf-hub:some/model", {})


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


def test_a_probe_without_a_readable_image_ends_no_run(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 20)
    for path in sorted(folder.rglob("*.png"))[1:]:
        path.write_bytes(path.read_bytes()[:300])  # the header says its size; the rest is gone
    run = pretrain("simclr", **{**QUICK, "data": folder, "batch_size": 8, "probe_every": 1}, out=tmp_path / "run")
    assert run.finished
    with open(run.path / "metrics.csv", newline="") as lines:
        assert not any(row["knn"] for row in csv.DictReader(lines))


def test_a_refused_call_deletes_nothing(tmp_path: Path) -> None:
    run = pretrain("simclr", **QUICK, out=tmp_path / "run")
    before = (run.path / "encoder.safetensors").read_bytes()
    with pytest.raises(UserError, match="--precision 16 needs a GPU"):
        pretrain("simclr", **{**QUICK, "precision": "16"}, out=run.path, overwrite=True)
    with pytest.raises(UserError, match="--channels is 1, but the images of world have 3"):
        pretrain("simclr", **QUICK, channels=1, out=run.path, overwrite=True)
    assert (run.path / "encoder.safetensors").read_bytes() == before


def test_a_folder_in_which_another_training_is_at_work(tmp_path: Path) -> None:
    run = pretrain("simclr", **QUICK, out=tmp_path / "run", max_time="0.01s")
    before = (run.path / "checkpoints" / "last.pt").read_bytes()
    for how in ("resume", "overwrite"):
        for devices in (1, 2):
            with alone(run.path), pytest.raises(UserError, match="another training is at work"):
                pretrain("simclr", **QUICK, out=run.path, devices=devices, **{how: True})
    assert (run.path / "checkpoints" / "last.pt").read_bytes() == before
    assert pretrain("simclr", out=run.path, resume=True).finished


@pytest.mark.parametrize(
    ("method", "which", "was", "told"),
    [
        ("simclr", "machine processes", 2, "as exact as arithmetic allows, for processes 2 -> 1"),
        ("rotation", "machine processes", 2, "each process's batch norm sees its own part of a batch, for proc"),
        ("rotation", "machine threads", 99, "as exact as arithmetic allows, for threads 99 -> 1"),
        ("simclr", "versions torch", "1.0", "as exact as other versions allow, for torch 1.0 -> "),
        ("simclr", "versions selfsight", "0.0", "as exact as other versions allow, for selfsight 0.0 -> "),
        ("simclr", "versions", None, "(exact)"),
    ],
)
def test_how_exactly_a_run_goes_on(method: str, which: str, was: object, told: str, tmp_path: Path) -> None:
    part, _, name = which.partition(" ")
    run = pretrain(method, **QUICK, threads=1, out=tmp_path / "run", max_time="0.01s")
    settings = yaml.safe_load((run.path / "run.yaml").read_text())
    if name:
        settings[part][name] = was
    else:
        del settings[part]  # as a stranger may have done
    (run.path / "run.yaml").write_text(yaml.safe_dump(settings))
    said: list[str] = []
    same = {"threads": 1, "precision": "32"}
    pretrain(method, **same, out=run.path, resume=True, max_time="0.01s", say=said.append)
    assert any("goes on in" in line and told in line for line in said), said


def test_classes_that_are_learnt_may_not_be_renamed(tmp_path: Path) -> None:
    """A list's fingerprint has the numbers of its labels alone."""
    data = {"fingerprint": "f", "samples": 4}
    write_settings(tmp_path, {"method": "finetune", "flags": {}, "data": {**data, "classes": ["cat", "dog"]}})
    same_data(tmp_path, {"data": {**data, "classes": ["cat", "dog"]}})
    with pytest.raises(UserError, match="has changed since the run began"):
        same_data(tmp_path, {"data": {**data, "classes": ["cat", "owl"]}})
    write_settings(tmp_path, {"method": "simclr", "flags": {}, "data": data})  # learns from none, or is older
    same_data(tmp_path, {"data": data})
    same_data(tmp_path, {"data": {**data, "classes": ["cat", "owl"]}})


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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'; did you mean 'cpu'?"),
        ({"precision": "fp16"}, "unknown precision 'fp16'; did you mean 'bf16'?"),
        ({"optimiser": "adam"}, "unknown optimiser 'adam'; did you mean 'adamw'?"),
        ({"logger": "wandbb"}, "unknown logger 'wandbb'; did you mean 'wandb'?"),
        ({"temprature": 0.1}, "unknown flag 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_words_that_are_none_are_refused(flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    """In a process of its own: types are not checked there, as with a user."""
    code = f"import selfsight; selfsight.pretrain('simclr', **{ {**QUICK, **flags, 'out': str(tmp_path / 'run')}!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"selfsight.errors.UserError: {words}"
    assert not (tmp_path / "run").exists()


def test_groups_of_batch_norm_must_divide_what_a_device_takes(tmp_path: Path) -> None:
    flags = {**QUICK, "image_size": 112, "batch_size": 96}
    with pytest.raises(UserError, match="works on groups of 16 samples here, which do not divide 24"):
        pretrain("moco_v2", **{**flags, "accumulate": 4}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert pretrain("moco_v2", **{**flags, "accumulate": 3}, out=tmp_path / "run").finished


def test_few_images_still_make_a_batch_of_two(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (9, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "nine.npy", images)
    options = {key: value for key, value in QUICK.items() if key != "batch_size"}
    run = pretrain("byol", **{**options, "data": str(tmp_path / "nine.npy")}, out=tmp_path / "run")
    assert run.settings["resolved"]["batch_size"] == 2
    assert run.finished


def test_the_best_checkpoint_is_told_apart_and_not_promised(tmp_path: Path) -> None:
    unlabelled = pretrain("simclr", **QUICK, out=tmp_path / "blind")
    with pytest.raises(UserError, match="has no best checkpoint: it had no labels for the probe; use --which last"):
        selfsight.evaluate(unlabelled.path, which="best", quiet=True)
    run = pretrain("simclr", **{**QUICK, "probe_every": 1}, out=tmp_path / "probed")
    for which in ("last", "best"):
        found = selfsight.evaluate(run.path, protocols=("knn",), which=which, quiet=True)  # pyright: ignore
        assert found["knn"]["weights"] == which
    assert {path.name for path in (run.path / "evaluation").iterdir()} == {"knn.json", "knn-best.json"}


def test_a_checkpoint_is_exported_with_its_normalisation(tmp_path: Path) -> None:
    run = pretrain("moco_v2", **{**QUICK, "probe_every": 1}, out=tmp_path / "run")
    last = export(run.path, format="safetensors", out=tmp_path / "last")
    best = export(run.path, format="safetensors", out=tmp_path / "best", which="best")
    facts = [json.loads((folder / "encoder.json").read_text()) for folder in (last, best)]
    assert facts[0]["normalise"] is not None
    assert facts[0]["normalise"] == facts[1]["normalise"]


def test_data_from_python_is_asked_for_again(tmp_path: Path) -> None:
    images = torch.randint(0, 255, (40, 3, 32, 32), dtype=torch.uint8)
    data = TensorDataset(images, torch.arange(40) % 2)
    run = pretrain("simclr", **{**QUICK, "data": data}, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"was trained on a Python object \(TensorDataset\), .*give data="):
        selfsight.evaluate(run.path, quiet=True)
    assert "knn" in selfsight.evaluate(run.path, data=data, protocols=("knn",), k=3, quiet=True)
