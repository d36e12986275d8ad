"""The tables of a run: they grow by rows and columns, and forget what comes after the step resumed from."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfsight.engine import tallies
from selfsight.engine.journal import Journal, Table, pick_loggers
from selfsight.errors import UserError


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_a_new_name_is_a_new_column(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ["step", "loss"])
    table.add({"step": 0, "loss": 0.5})
    table.add({"step": 1, "loss": 0.25, "accuracy": 0.125})
    assert rows(tmp_path / "t.csv") == [
        {"step": "0", "loss": "0.5", "accuracy": ""},
        {"step": "1", "loss": "0.25", "accuracy": "0.125"},
    ]


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path: Path) -> None:
    first = Journal(tmp_path, step=0, settings={})
    for step in (0, 20, 40):
        first.add_metrics({"step": step, "epoch": 0, "loss": 1.0, "own": 2.0})
    first.skip(3, "a.jpg", "truncated")
    again = Journal(tmp_path, step=21, settings={})
    again.add_metrics({"step": 40, "epoch": 0, "loss": 3.0})
    assert [(r["step"], r["loss"], r["own"]) for r in rows(tmp_path / "metrics.csv")] == [
        ("0", "1", "2"),
        ("20", "1", "2"),
        ("40", "3", ""),
    ]
    again.skip(3, "a.jpg", "cut short")  # heard of before
    assert len((tmp_path / "skipped.csv").read_text().splitlines()) == 2
    assert rows(tmp_path / "skipped.csv")[0]["where"] == "a.jpg"


def test_names_with_ends_of_lines_outlive_a_resume_and_half_a_row_does_not(tmp_path: Path) -> None:
    names = ["a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", 'a"\r"b.jpg', "\r", "plain.jpg"]
    first = Journal(tmp_path, step=0, settings={})
    for position, name in enumerate(names):
        first.skip(position, name, "truncated")
    whole = (tmp_path / "skipped.csv").read_bytes()
    for half in (b"", b'9,"c', b'9,"c\r', b'9,"c\nd', b'9,"c\n', b"9,c.jpg,trunc", b"9,c.jpg,truncated\r"):
        (tmp_path / "skipped.csv").write_bytes(whole + half)
        again = Journal(tmp_path, step=21, settings={})
        assert (tmp_path / "skipped.csv").read_bytes() == whole, half
        again.skip(0, names[0], "heard of before")
        assert [(row["where"], row["reason"]) for row in rows(tmp_path / "skipped.csv")] == [
            (name, "truncated") for name in names
        ]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = Journal(tmp_path, step=0, settings={}, loggers=("tensorboard",))
    journal.add_metrics({"step": 0, "epoch": 0, "loss": 1.0})
    assert list(tmp_path.glob("events*"))


def test_a_closed_logger_is_ended_and_a_resumed_run_purges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            told.append(purge_step)

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    for step in (0, 21):
        Journal(tmp_path, step=step, settings={}, loggers=("tensorboard",)).close()
    assert told == [None, "closed", 21, "closed"]


def test_tensorboard_is_the_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert pick_loggers(None) == ("tensorboard",)
    assert pick_loggers(("none",)) == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pick_loggers(None) == ()


def test_time_that_is_no_training_lowers_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 4.0, 8.0, 8.0])
    monkeypatch.setattr(tallies.time, "perf_counter", lambda: next(now))
    timings = tallies.Timings(100)
    for mark in ("data", "render", "step"):
        timings.mark(mark)
    timings.count()
    timings.skip()  # a probe of four seconds
    line = timings.take(1)
    assert line["images_per_second"] == 25
    assert [line[f"{part}_share"] for part in ("data", "render", "step")] == [0.125, 0.25, 0.125]


def test_a_logger_that_is_not_installed_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'selfsight\[wandb\]'"):
        Journal(tmp_path, step=0, settings={}, loggers=("wandb",))
