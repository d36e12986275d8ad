"""Calls of the command line that cannot be meant: each is refused in one line, and leaves nothing behind."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from any_words import Kept, small_run
from surroundings import changed, listing, started

from selfsight.cli import main

WORDS = "a hostile call is refused in one line with exit code 2, and leaves nothing behind"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("sound") / "run")


HOSTILE: list[list[str]] = [
    ["pretrain", "simclr", "--image-size", "-5"],
    ["pretrain", "simclr", "--epochs", "9" * 30],
    ["pretrain", "simclr", "--batch-size", "9" * 30, "--data", "world:64", "--image-size", "16"],
    ["pretrain", "simclr", "--batch-size", "1e400"],
    ["pretrain", "simclr", "--lr", "nan"],
    ["pretrain", "simclr", "--lr", "inf"],
    ["pretrain", "simclr", "--weight-decay", "nan"],
    ["pretrain", "simclr", "--save-minutes", "nan"],
    ["pretrain", "simclr", "--max-time", "nan"],
    ["pretrain", "simclr", "--max-time", "-5s"],
    ["pretrain", "simclr", "--seed", "9" * 30],
    ["pretrain", "simclr", "--seed", "-1"],
    ["pretrain", "simclr", "--data", ""],
    ["pretrain", "simclr", "--data", "a" * 5000],
    ["pretrain", "simclr", "--data", "~no-such-user/x"],
    ["pretrain", "simclr", "--data", "x.tar"],
    ["pretrain", "simclr", "--data", "pipe.npy"],
    ["pretrain", "simclr", "--data", "single:/dev/zero"],
    ["pretrain", "simclr", "--data", "world:" + "9" * 5000],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--out", "x.tar"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--out", "a" * 300],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--projection", "-1"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--temperature", "nan"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--labels", "/dev/zero"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--labels", "x.tar"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--init-from", "/dev/zero"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--backbone", "local-dir:/dev"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--backbone", "../../etc/passwd"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--backbone", "\x1b[2J\n"],
    ["pretrain", "simclr", "--resume", "--out", "x.tar"],
    ["pretrain", "\x1b[2J"],
    ["pretrain", "--from", "/dev/zero"],
    ["pretrain", "--from", "x.tar"],
    ["show", "simclr", "--image-size", "0"],
    ["show", "simclr", "--image-size", "-7"],
    ["show", "simclr", "--samples", "-1"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--rows", "-1"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--rows", "0"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--positions", "99"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--seed", "9" * 30],
    ["views", "simclr", "--data", "world:64", "--image-size", "-16"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--out", "nowhere/grid.png"],
    ["evaluate", "x.tar"],
    ["evaluate", "/dev/zero"],
    ["embed", "\0"],
    ["export", "x.tar", "--format", "timm"],
    ["report", "."],
    ["analyse", "timm:no_such", "--data", "world:64"],
    ["finetune", "x.tar"],
    ["distill", "/dev/zero"],
    ["demo", "--epochs", "-1"],
    ["bench", "../../x"],
    ["--no-such"],
]

WITH_A_RUN: list[list[str]] = [
    ["evaluate", "RUN", "--protocol", ""],
    ["evaluate", "RUN", "--protocol", "../x"],
    ["evaluate", "RUN", "--limit", "0"],
    ["evaluate", "RUN", "--limit", "-1"],
    ["evaluate", "RUN", "--k", "0"],
    ["evaluate", "RUN", "--k", "-1"],
    ["evaluate", "RUN", "--temperature", "0"],
    ["evaluate", "RUN", "--temperature", "nan"],
    ["evaluate", "RUN", "--seed", "9" * 30],
    ["evaluate", "RUN", "--head-layers", "-1"],
    ["evaluate", "RUN", "--head-layers", "99"],
    ["evaluate", "RUN", "--workers", "-1"],
    ["evaluate", "RUN", "--protocol", "linear-sgd", "--epochs", "0"],
    ["embed", "RUN", "--out", "features.exe"],
    ["embed", "RUN", "--limit", "-5"],
    ["analyse", "RUN", "--limit", "0"],
    ["analyse", "RUN", "--pictures", "-1"],
    ["pretrain", "simclr", "--resume", "--out", "RUN", "--seed", "5"],
]


@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: " ".join(words)[:60].encode("unicode_escape").decode())
def test_calls_that_cannot_be_meant(
    words: list[str], promise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"ustar" + bytes(600))
    os.mkfifo(tmp_path / "pipe.npy")
    leave_in_one_line(words, tmp_path, promise, capsys)


@pytest.mark.parametrize("words", WITH_A_RUN, ids=lambda words: " ".join(words)[:60])
def test_calls_on_a_run_that_cannot_be_meant(
    *,
    words: list[str],
    promise,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    leave_in_one_line([str(tmp_path / "run") if word == "RUN" else word for word in words], tmp_path, promise, capsys)


def leave_in_one_line(words: list[str], folder: Path, promise: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kept: Kept = promise(WORDS)
    before = listing(folder)
    code: object = None
    with started() as others:
        try:
            main(words)
        except SystemExit as left:
            code = left.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("selfsight: ")]
    after = changed(before, listing(folder))
    fine = code == 2 and len(lines) == 1 and len(said) == 1 and lines[0].isprintable()
    kept(fine and not after and not others, f"{' '.join(words)[:80]!r}: {code} {said[-3:]} {after} {others}")
