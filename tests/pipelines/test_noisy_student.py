"""Noisy Student end to end on a few hundred images: its rounds, its answers, how it goes on, and its wrong flags."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selfsight
from selfsight.cli import main
from selfsight.engine.run import open_run
from selfsight.errors import UserError
from selfsight.evaluation.answers import read_answers, write_answers
from selfsight.pipelines.noisy_student import noisy_student

SHORT: dict[str, Any] = {
    "data": "world:300",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "fraction": 0.2,
    "rounds": 2,
    "threshold": 0.11,
    "ratio": 2,
    "per_class": 20,
    "optimiser": "adamw",
    "teacher_epochs": 4,
    "teacher_batch_size": 20,
    "student_epochs": 2,
    "student_batch_size": 20,
}
WORDS = [word for name, value in SHORT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
QUICK = ["--precision", "32", "--no-report"]
STAGES = ["1-teacher", "2-student", "3-student"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("noisy") / "whole"
    main(["pipeline", "noisy_student", *WORDS, *QUICK, "--out", str(out)])
    return out


def test_each_round_is_a_run_that_learns_from_the_one_before(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        [*STAGES, "2-student-answers", "3-student-answers", "pipeline.yaml", "summary.json"]
    )
    runs = [open_run(whole / name) for name in STAGES]
    assert all(run.finished and run.method == "noisy_student" for run in runs)
    assert [run.settings["hyper"]["teacher"] for run in runs] == ["none", *(str(r.path.resolve()) for r in runs[:2])]
    assert {run.settings["hyper"]["fraction"] for run in runs} == {0.2}
    labelled = runs[0].settings["data"]["samples"]
    assert labelled == pytest.approx(60, abs=6)
    assert [run.settings["resolved"]["batch_size"] for run in runs] == [20, 60, 60]
    state = torch.load(whole / "2-student" / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 2 * (labelled // 20), "an epoch counts labelled images"
    assert selfsight.load_classifier(runs[2].path)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    places, told = told_in(whole / "2-student-answers")
    assert len(places) == 300 - labelled
    np.testing.assert_allclose(told.sum(axis=1), 1, atol=1e-5)
    source = runs[0].source()
    plain = runs[0].assembly.recipe.views.plain
    x = plain.render(torch.from_numpy(np.stack([source.read(int(p)) for p in places[:5]])), {}, _key(5)).x
    with torch.no_grad():
        answer = selfsight.load_classifier(runs[0].path)(x).softmax(dim=1)
    np.testing.assert_allclose(told[:5], answer.numpy(), atol=1e-4)


def told_in(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The positions and probabilities of all answers."""
    found = read_answers(folder)
    return found.positions, found.rows(np.arange(len(found.positions)))


def _key(n: int) -> Any:
    from selfsight.keyed import Key  # noqa: PLC0415

    return Key(0, torch.zeros(n, dtype=torch.long), torch.arange(n))


def test_the_summary_has_every_score_beside_its_teachers(whole: Path) -> None:
    stages = json.loads((whole / "summary.json").read_text())["stages"]
    assert list(stages) == STAGES
    assert [set(row["baselines"]) for row in stages.values()] == [
        {"scratch"},
        {"teacher", "scratch"},
        {"teacher", "scratch"},
    ]
    for before, after in (STAGES[:2], STAGES[1:]):
        assert stages[after]["baselines"]["teacher"]["top1"] == stages[before]["scores"]["top1"]
    scratch = {row["baselines"]["scratch"]["top1"] for row in stages.values()}
    assert len(scratch) == 1, "one training from scratch serves all of one backbone"
    assert stages["3-student"]["settings"]["threshold"] == 0.11
    assert all(row["data"]["test"] == 60 for row in stages.values())


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same, stopped in its first stage, and killed within the answers and within a round; what it said first."""
    out, said = tmp_path_factory.mktemp("noisy") / "parts", io.StringIO()
    words = ["pipeline", "noisy_student", *WORDS, *QUICK, "--out", str(out)]
    with redirect_stdout(said):
        main([*words, "--max-time", "0.01s"])
    assert not open_run(out / "1-teacher").finished
    main([*words, "--rounds", "1"])
    (out / "2-student" / "encoder.safetensors").unlink()  # as if killed while it trained
    (out / "2-student" / "evaluation" / "classifier.json").unlink()
    for part in (out / "2-student-answers").glob("part-*"):
        part.unlink()
    with pytest.raises(UserError, match=r"--threshold 0\.11 -> 0\.5"):
        noisy_student(out=out, threshold=0.5)
    main(["pipeline", "noisy_student", "--out", str(out), "--rounds", "2", *QUICK])  # one more round may come any time
    return out, said.getvalue()


def states(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / name / "checkpoints" / "last.pt", weights_only=True)["method"]


def test_it_goes_on_where_it_was_stopped(whole: Path, parts: tuple[Path, str]) -> None:
    out, said = parts
    assert "stopped in 1-teacher; the same command goes on from there" in said
    assert all(open_run(out / name).finished for name in STAGES)
    assert list(json.loads((out / "summary.json").read_text())["stages"]) == STAGES
    left, right = (states(folder, "1-teacher") for folder in (whole, out))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_students_end_as_those_that_ran_through(whole: Path, parts: tuple[Path, str]) -> None:
    for name in STAGES[1:]:
        left, right = (states(folder, name) for folder in (whole, parts[0]))
        assert {key: float((left[key].double() - right[key].double()).abs().max()) for key in left} == dict.fromkeys(
            left, 0.0
        )


def test_answers_go_on_part_by_part(whole: Path, tmp_path: Path) -> None:
    teacher, said = open_run(whole / "1-teacher"), []
    source, some = teacher.source(), np.arange(5, 105)
    how: dict[str, Any] = {"device": "cpu", "workers": 0, "part": 30, "say": said.append}
    assert write_answers(teacher, source, some, tmp_path / "a", **how) == "done"
    parts = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "a").glob("part-*"))}
    assert len(parts) == 4
    first, last = next(iter(parts)), list(parts)[3]
    places, told = told_in(tmp_path / "a")
    assert places.tolist() == some.tolist()
    first.unlink()
    with pytest.raises(UserError, match="has 3 of 4 parts of a teacher's answers"):
        read_answers(tmp_path / "a")
    assert write_answers(teacher, source, some, tmp_path / "a", **how, seconds=0.0) == "max-time"
    assert write_answers(teacher, source, some, tmp_path / "a", **how) == "done"
    np.testing.assert_array_equal(told_in(tmp_path / "a")[1], told)
    assert last.stat().st_mtime_ns == parts[last], "what is there stays"
    count = len(said)
    assert write_answers(teacher, source, some, tmp_path / "a", **how) == "done"
    assert len(said) == count
    write_answers(open_run(whole / "2-student"), source, some, tmp_path / "a", **how)  # another teacher's: all anew
    assert not np.array_equal(told_in(tmp_path / "a")[1], told)


def test_one_round_follows_any_classifier(whole: Path, tmp_path: Path) -> None:
    """A distilled student may be the teacher of a noisy one, which learns from the same labels."""
    common: dict[str, Any] = {"optimiser": "adamw", "precision": "32", "report": False}
    flags = {"data": "world:200", "image_size": 32, "backbone": "tiny_cnn", "batch_size": 50, "epochs": 1}
    first = selfsight.pretrain("simclr_v2", **flags, **common, probe_every=0, out=tmp_path / "first")
    tuned = selfsight.finetune(first.path, **common, fraction=0.3, batch_size=20, epochs=2)
    run = selfsight.noisy_student(
        tuned.path, **common, threshold=0.0, ratio=1, per_class=10, batch_size=10, epochs=1, magnitude=9
    )
    assert run.path == Path(f"{tuned.path}-student")
    assert run.settings["hyper"]["fraction"] == 0.3
    assert run.settings["hyper"]["magnitude"] == 9
    assert set(json.loads((run.path / "evaluation" / "classifier.json").read_text())["baselines"]) == {
        "teacher",
        "scratch",
    }
    assert run.settings["command"].startswith(f"selfsight noisy_student {tuned.path.resolve()} ")
    with pytest.raises(UserError, match="--fraction follows from the teacher"):
        selfsight.noisy_student(tuned.path, **common, fraction=0.5, out=tmp_path / "new")
    with pytest.raises(UserError, match="--data follows from the teacher"):
        selfsight.noisy_student(tuned.path, **common, data="world:100", out=tmp_path / "new")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--fraction", "0"], "--fraction is 0"),
        (["--fraction", "1"], "nothing for a teacher to answer"),
        (["--rounds", "0"], "--rounds is 0; there are 1 to 8 students"),
        (["--dropout", "1"], "--dropout is 1"),
        (["--threshold", "1"], "--threshold is 1"),
        (["--temperature", "0"], "--temperature must be greater than 0"),
        (["--ratio", "0"], "--ratio must be greater than 0"),
        (["--drop-path", "0.2"], "--drop-path needs a backbone with residual branches"),
        (["--student", "resnet81"], "unknown backbone 'resnet81'"),
        (["--backbone", "small_cnn", "--student", "tiny_cnn"], "a noisy student is no smaller"),
        (["--teacher-batch-size", "100"], "--teacher-batch-size is 100, but there are"),
        (["--student-batch-size", "100"], "--student-batch-size is 100, but there are"),
        (["--devices", "3"], "does not divide into 3 devices"),
        (["--student-epochs", "0"], "--student-epochs is 0"),
        (["--teacher-lr", "0"], "--teacher-lr is 0"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--treshold", "0.5"], "--threshold"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line_before_anything_is_trained(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["pipeline", "noisy_student", *WORDS, *QUICK, *words, "--out", str(tmp_path / "new")])
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("selfsight: ")]
    assert (left.value.code, len(lines)) == (2, 1), said
    assert told in lines[0]
    assert not (tmp_path / "new").exists()


def test_help_is_enough_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pipeline", "--help"])
    assert "noisy_student" in capsys.readouterr().out
    main(["pipeline", "noisy_student", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in ("--out", "--fraction", "--student", "--threshold", "--magnitude", "--rounds"))
    assert "--say" not in text
    main(["noisy_student", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("TEACHER", "--ratio", "--per-class", "--labels"))
    assert "--answers" not in text
