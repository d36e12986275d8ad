"""Fine-tuning and distillation as runs: what they take over, what they keep, how they go on, what is refused."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import selfsight
from selfsight.cli import main
from selfsight.engine.run import OpenRun, open_run
from selfsight.errors import UserError
from selfsight.evaluation.classifier import tuned_labels, tuned_run
from selfsight.flags import Flags
from selfsight.keyed import Key
from selfsight.pipelines.stages import distill, finetune, run_stage
from selfsight.pretraining import pretrain

COMMON: dict[str, Any] = {"optimiser": "adamw", "precision": "32", "report": False}
QUICK = {
    "data": "world:200",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "batch_size": 50,
    "epochs": 1,
    **COMMON,
    "probe_every": 0,
}
TUNE: dict[str, Any] = {**COMMON, "fraction": 0.2, "batch_size": 20, "epochs": 2}


def state_of(run: OpenRun) -> dict[str, torch.Tensor]:
    return torch.load(run.path / "checkpoints" / "last.pt", weights_only=True)["method"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    return pretrain("simclr_v2", **QUICK, out=tmp_path_factory.mktemp("stages") / "first")


@pytest.fixture(scope="module")
def tuned(first: OpenRun) -> OpenRun:
    return finetune(first.path, **TUNE)


def test_it_begins_with_the_encoder_and_the_first_layer_of_the_head(first: OpenRun, tmp_path: Path) -> None:
    """Sheet 9, check 4: the weights load unchanged. A rate of next to nothing leaves them where they were."""
    run = finetune(first.path, **{**TUNE, "lr": 1e-12, "weight_decay": 0.0, "epochs": 1}, out=tmp_path / "run")
    before, after = state_of(first), state_of(run)
    for part in ("encoder.", "projector."):
        keys = [key for key in after if key.startswith(part) and "running" not in key and "num_batches" not in key]
        assert keys
        for key in keys:
            torch.testing.assert_close(after[key], before[key], atol=1e-8, rtol=0)
    assert {key for key in after if key.startswith("projector.")} == {
        key for key in before if key.startswith(("projector.0.", "projector.1."))
    }


def test_a_fine_tuned_run_is_a_run(first: OpenRun, tuned: OpenRun) -> None:
    assert tuned.path == Path(f"{first.path}-finetune")
    assert tuned.settings["resolved"]["batch_size"] == 20
    assert tuned.settings["data"]["samples"] == pytest.approx(0.2 * 200, abs=5)
    assert len(tuned.classes) == 10
    weights = load_file(tuned.path / "encoder.safetensors")
    state = state_of(tuned)
    assert all(torch.equal(state[f"encoder.model.{key}"], value) for key, value in weights.items())
    assert selfsight.load(tuned.path)(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert "knn" in selfsight.evaluate(tuned.path, protocols=("knn",), k=5, quiet=True)


def test_its_classifier_is_scored_beside_the_same_network_from_scratch(tuned: OpenRun) -> None:
    result = json.loads((tuned.path / "evaluation" / "classifier.json").read_text())
    assert set(result["baselines"]) == {"scratch"}
    assert result["scores"]["samples"] == result["baselines"]["scratch"]["samples"] == 40
    assert result["settings"]["labelled"] == tuned.settings["data"]["samples"]
    own, other = result["settings"], result["baselines"]["scratch"]["settings"]
    assert (other["labelled"], other["epochs"]) == (own["labelled"], own["epochs"])
    assert other["batch_size"] == tuned.settings["resolved"]["batch_size"]


def test_the_score_is_the_share_of_right_answers(tuned: OpenRun) -> None:
    classifier = selfsight.load_classifier(tuned.path)
    source, plain = tuned.source("test"), tuned.assembly.recipe.views.plain
    images = torch.stack([torch.from_numpy(source.read(i)) for i in range(len(source))])
    key = Key(0, torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)))
    with torch.no_grad():
        answers = classifier(plain.render(images, plain.plan(key), key).x).argmax(1).numpy()
    result = json.loads((tuned.path / "evaluation" / "classifier.json").read_text())
    assert result["scores"]["top1"] == pytest.approx((answers == source.labels).mean())


def test_a_student_learns_from_a_teacher_that_may_then_be_deleted(tuned: OpenRun, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tuned.path, teacher)
    run = distill(teacher, **COMMON, epochs=1, batch_size=50, backbone="small_cnn", out=tmp_path / "student")
    assert run.settings["resolved"]["backbone"] == "small_cnn"
    assert run.classes == tuned.classes
    result = json.loads((run.path / "evaluation" / "classifier.json").read_text())
    assert set(result["baselines"]) == {"teacher", "scratch"}
    before = json.loads((tuned.path / "evaluation" / "classifier.json").read_text())
    assert result["baselines"]["teacher"]["top1"] == before["scores"]["top1"]
    assert result["baselines"]["scratch"]["settings"]["labelled"] == before["settings"]["labelled"]
    assert {key.split(".")[0] for key in state_of(run)} == {"encoder", "classifier"}
    shutil.rmtree(teacher)
    assert selfsight.load_classifier(run.path)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert selfsight.load(run.path)(torch.zeros(2, 3, 32, 32)).shape == (2, 256)


def test_a_student_of_its_own_kind_takes_the_baseline_that_was_measured(tuned: OpenRun, tmp_path: Path) -> None:
    run = distill(tuned.path, **COMMON, epochs=1, batch_size=50, temperature=2.0, out=tmp_path / "student")
    result = json.loads((run.path / "evaluation" / "classifier.json").read_text())
    before = json.loads((tuned.path / "evaluation" / "classifier.json").read_text())
    assert result["baselines"]["scratch"]["top1"] == before["baselines"]["scratch"]["top1"]
    assert result["baselines"]["scratch"]["settings"]["measured_for"] == str(tuned.path)
    assert result["settings"]["temperature"] == 2.0


@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_a_stage_goes_on_bit_for_bit(kind: str, first: OpenRun, tuned: OpenRun, tmp_path: Path) -> None:
    stage, begun = (finetune, first) if kind == "finetune" else (distill, tuned)
    flags = {**TUNE, "epochs": 3} if kind == "finetune" else {**COMMON, "batch_size": 50, "epochs": 2}
    whole = stage(begun.path, **flags, log_every=1, out=tmp_path / "whole")
    part = stage(begun.path, **flags, log_every=1, out=tmp_path / "part", max_time="0.01s")
    assert not part.finished
    again = stage(begun.path, out=tmp_path / "part", resume=True, precision="32", report=False, log_every=1)
    assert again.finished
    left, right = state_of(whole), state_of(again)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert (whole.path / "metrics.csv").read_text() == (again.path / "metrics.csv").read_text()
    assert (again.path / "evaluation" / "classifier.json").exists()


def a_copy(run: OpenRun, place: Path, without: str = "", **flags: object) -> OpenRun:
    """The run in another folder, as if it had been begun with other flags, or had lost a part."""
    shutil.copytree(run.path, place, ignore=shutil.ignore_patterns(without) if without else None)
    settings = yaml.safe_load((place / "run.yaml").read_text())
    settings["flags"] |= flags
    (place / "run.yaml").write_text(yaml.safe_dump(settings))
    return open_run(place)


def test_a_stage_takes_the_images_that_a_limit_left(
    first: OpenRun, tuned: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which those are depends on the seed: with another, --label-weight would learn labels that were not given."""
    seen: list[Flags] = []

    def looked_at(name: str, flags: Flags, hyper: dict[str, Any], **how: object) -> tuple[Path, str]:
        seen.append(flags)
        return tmp_path, "done"

    monkeypatch.setattr("selfsight.pipelines.stages.run_from_flags", looked_at)
    begun = a_copy(first, tmp_path / "begun", limit=100, seed=3)
    teacher = a_copy(tuned, tmp_path / "teacher", limit=100, seed=3)
    run_stage("finetune", begun.path, {}, say=lambda text: None)
    run_stage("distill", teacher.path, {"label_weight": 0.5}, say=lambda text: None)
    assert [(flags.limit, flags.seed) for flags in seen] == [(100, 3)] * 2
    with pytest.raises(UserError, match="leave out --data, --labels, --limit and --seed, or --label-weight"):
        run_stage("distill", teacher.path, {"label_weight": 0.5, "seed": 0}, say=lambda text: None)


def test_it_is_said_that_a_pretraining_has_not_ended(
    first: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("selfsight.pipelines.stages.run_from_flags", lambda *given, **how: (tmp_path, "done"))
    stopped = a_copy(first, tmp_path / "stopped", without="encoder.safetensors")
    for run in (first, stopped):
        run_stage("finetune", run.path, {}, say=said.append)
    assert said == [f"{stopped.path} has not come to its end: its last checkpoint is taken"]


def test_without_the_head_there_is_the_encoder(first: OpenRun, tmp_path: Path) -> None:
    bare = a_copy(first, tmp_path / "bare", without="checkpoints")
    with pytest.raises(UserError, match="no checkpoint to take the head's layers from; use --head-layers 0"):
        finetune(bare.path, **TUNE, out=tmp_path / "tuned")
    assert finetune(bare.path, **{**TUNE, "epochs": 1}, head_layers=0, out=tmp_path / "tuned").finished


def test_a_student_may_be_of_a_kind_that_the_pretraining_does_not_take(tmp_path: Path) -> None:
    small = {**QUICK, "data": "world:60", "batch_size": 20}
    begun = pretrain("amdim", **{**small, "backbone": "amdim_nano"}, out=tmp_path / "first")
    run = finetune(begun.path, **{**TUNE, "epochs": 1, "fraction": 1.0}, head_layers=0)
    student = distill(run.path, **COMMON, epochs=1, batch_size=20, backbone="tiny_cnn")
    assert student.settings["resolved"]["backbone"] == "tiny_cnn"
    ours, theirs = (found.assembly.recipe.views.plain for found in (student, begun))
    assert (ours.size, ours.normalise, ours.interpolation) == (theirs.size, theirs.normalise, theirs.interpolation)
    assert selfsight.load_classifier(student.path)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_resuming_with_other_settings_says_which(first: OpenRun, tuned: OpenRun) -> None:
    with pytest.raises(UserError, match=r"--fraction 0\.2 -> 0\.5"):
        finetune(first.path, out=tuned.path, resume=True, fraction=0.5)


def test_the_command_in_its_settings_repeats_it(first: OpenRun, tuned: OpenRun, tmp_path: Path) -> None:
    command = tuned.settings["command"]
    assert command.startswith(f"selfsight finetune {first.path} ")
    assert "--fraction 0.2" in command
    for hidden in ("pretext", "backbone", "image-size", "init-from"):
        assert f"--{hidden}" not in command
    main(["pretrain", "--from", str(tuned.path / "run.yaml"), "--out", str(tmp_path / "again")])
    left, right = state_of(tuned), state_of(open_run(tmp_path / "again"))
    assert all(torch.equal(left[key], right[key]) for key in left)


def partly_labelled(folder: Path) -> tuple[Path, Path]:
    """Images whose class is their brightness; of two thirds the label is known."""
    rng, rows = np.random.default_rng(0), []
    for k in range(90):
        path = folder / "images" / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8) + np.uint8(120 * (k % 2))
        Image.fromarray(image).save(path)
        if k % 3:
            rows.append((path.name, "bright" if k % 2 else "dark"))
    with open(folder / "few.csv", "w", newline="") as out:
        csv.writer(out).writerows([("path", "label"), *rows])
    return folder / "images", folder / "few.csv"


def test_images_without_labels_are_left_to_the_student(tmp_path: Path) -> None:
    images, labels = partly_labelled(tmp_path)
    flags = {**QUICK, "data": str(images), "batch_size": 16}
    begun = pretrain("simclr_v2", **flags, out=tmp_path / "first")
    run = finetune(begun.path, **{**TUNE, "fraction": 0.5, "batch_size": 8}, labels=labels)
    assert run.classes == ("bright", "dark")
    found, kept = tuned_labels(run)
    assert kept.fingerprint == run.settings["data"]["fingerprint"], "the baseline learns from the same images"
    assert set(np.asarray(kept.labels).tolist()) == {0, 1}
    assert len(kept) == run.settings["data"]["samples"] < len(found.data.train) < len(found.whole)
    student = distill(run.path, **COMMON, epochs=1, batch_size=16, label_weight=0.5)
    assert student.settings["data"]["samples"] == len(found.whole)
    labels_seen = student.assembly.recipe.method.labels  # of a run that is only opened again there are none
    assert len(labels_seen) == 0
    with open(student.path / "metrics.csv", newline="") as lines:
        losses = [float(row["loss"]) for row in csv.DictReader(lines) if row["loss"]]
    assert losses
    assert all(np.isfinite(losses))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["finetune", "no/run"], "no run at no/run"),
        (["finetune", "PARENT"], "it has no run.yaml; it holds"),
        (["finetune", "FIRST", "--head-layers", "4"], "--head-layers is 4, but the head has 3 layers; use 0 to 3"),
        (["finetune", "FIRST", "--fraction", "1.5"], "--fraction is 1.5; it lies above 0, and 1 is all labels"),
        (["finetune", "FIRST", "--batch-size", "5000"], "larger than the data"),
        (["finetune", "FIRST", "--backbone", "resnet18"], "--backbone"),
        (["finetune", "TUNED"], "is fine-tuned already; give the pretrained run"),
        (["finetune", "FIRST", "--out", "TUNED"], "holds another run"),
        (["finetune", "FIRST", "--out", "FIRST", "--overwrite"], "is the run that this one goes on from"),
        (["distill", "TUNED", "--out", "TUNED", "--overwrite"], "is the run that this one goes on from"),
        (["noisy_student", "TUNED", "--out", "LINK", "--overwrite"], "is the run that this one goes on from"),
        (
            ["pretrain", "simclr_v2", "--init-from", "FIRST", "--out", "FIRST", "--overwrite", "--devices", "2"],
            "is the run that this one goes on from",
        ),
        (["finetune", "FIRST", "--data", "PLAIN"], "has no labels, which a classifier needs; give --labels"),
        (["distill", "FIRST"], "is a run of simclr_v2, no classifier: selfsight finetune"),
        (["distill", "TUNED", "--backbone", "resnet81"], "unknown backbone 'resnet81'"),
        (["distill", "TUNED", "--temperature", "0"], "--temperature must be greater than 0"),
        (["distill", "TUNED", "--label-weight", "1"], "--label-weight is 1"),
        (["distill", "TUNED", "--label-weight", "0.5", "--data", "world:100"], "belong to its own images"),
        (["distill", "TUNED", "--fraction", "0.5"], "--fraction"),
        (["pretrain", "finetune"], "finetune is no method but a command of its own; see selfsight finetune --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(
    *,
    words: list[str],
    told: str,
    first: OpenRun,
    tuned: OpenRun,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((30, 3, 32, 32), dtype=np.uint8))
    names = {"FIRST": str(first.path), "TUNED": str(tuned.path), "PLAIN": str(tmp_path / "plain.npy")}
    names |= {"PARENT": str(first.path.parent), "LINK": str(tmp_path / "link")}
    (tmp_path / "link").symlink_to(tuned.path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = yaml.safe_load((tuned.path / "run.yaml").read_text())
    words = [names.get(word, word) for word in words]
    if words[0] in ("finetune", "distill") and "--out" not in words:
        words += ["--out", "new"]
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("selfsight: ")]
    assert (left.value.code, len(lines)) == (2, 1), said
    assert told in lines[0]
    assert "Traceback" not in said
    assert not list(work.iterdir()), "a refused call leaves nothing behind"
    assert yaml.safe_load((tuned.path / "run.yaml").read_text()) == before
    assert all(run.finished and (run.path / "checkpoints" / "last.pt").exists() for run in (first, tuned))
    assert not list(tmp_path.glob("*-answers"))


def test_help_says_what_is_needed_and_hides_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown, hidden in (
        ("finetune", ("RUN", "--head-layers", "--fraction", "--labels"), ("--backbone", "--pretext", "--init-from")),
        ("distill", ("TEACHER", "--temperature", "--backbone", "--label-weight"), ("--classes", "--image-size")),
    ):
        main([name, "--help"])
        text = capsys.readouterr().out
        assert all(word in text for word in shown), text
        assert not any(word in text for word in hidden), text


@pytest.mark.parametrize("teachers", [{"a": "a"}, {"a": "b", "b": "a"}], ids=str)
def test_teachers_in_a_circle_are_refused(teachers: dict[str, str], tuned: OpenRun, tmp_path: Path) -> None:
    """Nobody trains so, but a run.yaml may say so; it was followed for ever."""
    for name, teacher in teachers.items():
        settings = {**tuned.settings, "method": "distill"}
        settings["hyper"] = {**settings["hyper"], "teacher": str(tmp_path / teacher)}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match="is its own teacher"):
        tuned_run(open_run(tmp_path / "a"))
    settings["hyper"].pop("teacher")
    (tmp_path / "a" / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match="does not say who its teacher was"):
        tuned_run(open_run(tmp_path / "a"))


@pytest.mark.slow
def test_two_devices_fine_tune_and_their_parent_measures(first: OpenRun, tuned: OpenRun, tmp_path: Path) -> None:
    run = finetune(first.path, **{**TUNE, "epochs": 1}, devices=2, out=tmp_path / "two")
    assert run.finished
    assert run.settings["machine"]["processes"] == 2
    assert run.settings["data"]["fingerprint"] == tuned.settings["data"]["fingerprint"]
    assert run.settings["hyper"] == tuned.settings["hyper"]
    assert (run.path / "evaluation" / "classifier.json").exists()
