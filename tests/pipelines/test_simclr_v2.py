"""The pipeline end to end on a few hundred images: its stages, its summary, how it goes on, and its wrong flags."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import selfsight
from selfsight.cli import main
from selfsight.engine.run import open_run
from selfsight.errors import TrainingError, UserError
from selfsight.pipelines.simclr_v2 import simclr_v2

SHORT = {
    "data": "world:300",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "fraction": 0.2,
    "optimiser": "adamw",
    "pretrain_epochs": 2,
    "pretrain_batch_size": 50,
    "finetune_epochs": 3,
    "finetune_batch_size": 20,
    "distill_epochs": 2,
    "distill_batch_size": 50,
}
WORDS = [word for name, value in SHORT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
QUICK = ["--precision", "32", "--no-report"]
STAGES = ["1-pretrain", "2-finetune", "3-self-distill", "4-distill"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "whole"
    main(["pipeline", "simclr_v2", *WORDS, *QUICK, "--student", "small_cnn", "--out", str(out)])
    return out


def test_each_stage_is_a_run_of_its_own(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [*STAGES, "pipeline.yaml", "summary.json"]
    runs = [open_run(whole / name) for name in STAGES]
    assert [run.method for run in runs] == ["simclr_v2", "finetune", "distill", "distill"]
    assert all(run.finished for run in runs)
    assert [run.settings["resolved"]["backbone"] for run in runs] == ["tiny_cnn"] * 3 + ["small_cnn"]
    assert runs[2].settings["hyper"]["teacher"] == str(runs[1].path.resolve())
    assert runs[3].settings["hyper"]["teacher"] == str(runs[2].path.resolve())
    assert runs[0].settings["data"]["samples"] == runs[3].settings["data"]["samples"] == 300
    assert runs[1].settings["data"]["samples"] == pytest.approx(60, abs=6)
    assert selfsight.load_classifier(whole / "4-distill")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_summary_has_every_score_beside_its_baselines(whole: Path) -> None:
    stages = json.loads((whole / "summary.json").read_text())["stages"]
    assert list(stages) == STAGES
    assert [set(row["baselines"]) for row in stages.values()] == [
        {"random", "pixels"},
        {"scratch"},
        {"teacher", "scratch"},
        {"teacher", "scratch"},
    ]
    assert stages["3-self-distill"]["baselines"]["teacher"]["top1"] == stages["2-finetune"]["scores"]["top1"]
    assert stages["4-distill"]["baselines"]["teacher"]["top1"] == stages["3-self-distill"]["scores"]["top1"]
    assert [stages[name]["settings"]["temperature"] for name in STAGES[2:]] == [0.1, 1.0]
    labelled = open_run(whole / "2-finetune").settings["data"]["samples"]
    assert stages["1-pretrain"]["data"]["train"] == stages["2-finetune"]["settings"]["labelled"] == labelled
    for row in stages.values():
        assert all(0 <= who["top1"] <= 1 for who in (row["scores"], *row["baselines"].values()))
        assert row["data"]["test"] == 60


def test_a_second_call_does_nothing_again_and_shows_the_table(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    main(["pipeline", "simclr_v2", "--out", str(whole), *QUICK])
    said = capsys.readouterr().out
    assert all(name in said for name in STAGES)
    assert "from scratch" in said
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == before


def test_it_goes_on_where_it_was_stopped(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped by the clock in its first stage, and killed between two others, it ends as the one that ran through."""
    out = tmp_path / "parts"
    words = ["pipeline", "simclr_v2", *WORDS, *QUICK, "--student", "small_cnn", "--out", str(out)]
    main([*words, "--max-time", "0.01s"])
    said = capsys.readouterr().out
    assert "stopped in 1-pretrain; the same command goes on from there" in said
    assert not open_run(out / "1-pretrain").finished
    main(words)
    for name in ("2-finetune", "3-self-distill"):  # as if killed while it tuned, and before it had measured
        for path in (out / name / "encoder.safetensors", out / name / "evaluation" / "classifier.json"):
            path.unlink()
    main(["pipeline", "simclr_v2", "--out", str(out), *QUICK])
    for name in STAGES:
        left, right = (
            torch.load(folder / name / "checkpoints" / "last.pt", weights_only=True)["method"]
            for folder in (whole, out)
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    scores = [
        {name: row["scores"] for name, row in json.loads((folder / "summary.json").read_text())["stages"].items()}
        for folder in (whole, out)
    ]
    assert scores[0] == scores[1]


def test_other_settings_are_refused_even_where_they_are_the_default(whole: Path) -> None:
    before = (whole / "pipeline.yaml").read_text()
    with pytest.raises(UserError, match=r"--fraction 0\.2 -> 0\.1"):
        simclr_v2(out=whole, fraction=0.1)
    assert (whole / "pipeline.yaml").read_text() == before
    assert yaml.safe_load(before)["settings"]["student"] == "small_cnn"


def test_without_a_student_there_are_three_stages_and_overwriting_leaves_nothing_old(tmp_path: Path) -> None:
    out = tmp_path / "run"
    one = {"pretrain_epochs": 1, "finetune_epochs": 1, "distill_epochs": 1}
    said: list[str] = []
    how = {"out": out, "report": False, "overwrite": True}
    simclr_v2(**{**SHORT, **one, "student": "tiny_cnn"}, **how, max_time="0.01s", say=said.append)  # pyright: ignore
    assert said[0] == f"begins in {out}"
    assert said[-1] == "stopped in 1-pretrain; the same command without --overwrite goes on from there"
    (out / "4-distill").mkdir()
    found = simclr_v2(**{**SHORT, **one}, **how)  # pyright: ignore
    assert found["ended"] == "done"
    assert list(found["stages"]) == STAGES[:3]
    assert not (out / "4-distill").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--fraction", "0"], "--fraction is 0"),
        (["--limit", "4"], "labelled images; give at least 5"),
        (["--head-layers", "4"], "--head-layers is 4; the head has 3 layers: use 0 to 3"),
        (["--temperature", "0"], "--temperature must be greater than 0"),
        (["--label-weight", "1"], "--label-weight is 1"),
        (["--student", "resnet81"], "unknown backbone 'resnet81'"),
        (["--finetune-batch-size", "500"], "--finetune-batch-size is 500, but there are"),
        (["--pretrain-batch-size", "500"], "larger than the data, 300 images; use --pretrain-batch-size 256 or less"),
        (["--distill-batch-size", "500"], "--distill-batch-size is 500, but there are 300 images; use fewer"),
        (["--devices", "3"], "--pretrain-batch-size 50 does not divide into 3 devices"),
        (["--devices", "2", "--finetune-batch-size", "15"], "--finetune-batch-size 15 does not divide into 2 devices"),
        (["--devices", "0"], "--devices is 0; it must be at least 1"),
        (["--distill-epochs", "0"], "--distill-epochs is 0"),
        (["--finetune-lr", "0"], "--finetune-lr is 0"),
        (["--data", "PLAIN"], "no labels"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--max-time", "soon"], "write 90s, 30m, 12h or 2d"),
        (["--tempreture", "2"], "--temperature"),
        (["--precision", "16", "--device", "cpu"], "--precision 16 needs a GPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line_before_anything_is_trained(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((300, 3, 32, 32), dtype=np.uint8))
    words = [str(tmp_path / "plain.npy") if word == "PLAIN" else word for word in words]
    with pytest.raises(SystemExit) as left:
        main(["pipeline", "simclr_v2", *WORDS, *QUICK, *words, "--out", str(tmp_path / "new")])
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("selfsight: ")]
    assert (left.value.code, len(lines)) == (2, 1), said
    assert told in lines[0]
    assert not (tmp_path / "new").exists()


def test_what_fails_names_the_pipelines_own_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **how: object) -> None:
        raise TrainingError("out of memory; --accumulate 2 keeps the batch in pieces, --batch-size 25 halves it")

    monkeypatch.setattr("selfsight.pipelines.simclr_v2.run_from_flags", full)
    with pytest.raises(TrainingError, match=r"^out of memory; --pretrain-batch-size 25 halves it"):
        simclr_v2(**SHORT, out=tmp_path / "run")  # pyright: ignore


def test_a_folder_that_holds_something_else_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for more in ([], ["--overwrite"]):
        with pytest.raises(SystemExit):
            main(["pipeline", "simclr_v2", *WORDS, "--out", str(tmp_path), *more])
        assert "is not empty and holds no pipeline; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_help_is_enough_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pipeline", "--help"])
    assert "simclr_v2" in capsys.readouterr().out
    main(["pipeline", "simclr_v2", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "pretrain, fine-tune, distill" in text
    assert all(word in text for word in ("--out", "--fraction", "--student", "--labels", "--max-time"))
    assert "--say" not in text
