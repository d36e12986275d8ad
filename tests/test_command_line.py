"""The command line, end to end, on real files: what works, what is refused in one line, and what survives a kill."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from selfsight.cli import main

TINY = ["--data", "world:512", "--image-size", "32", "--backbone", "small_cnn", "--batch-size", "64"]


def folder_of_images(folder: Path, n: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for k in range(n):
        target = folder / "images" / f"class{k % 2}" / f"{k}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(target)
    return folder / "images"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake gets; exit code 2, no traceback."""
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("selfsight: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


def started(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "selfsight", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def done(words: list[str], code: int = 0, **environment: str) -> str:
    process = started(words, **environment)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == code, said
    return said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "simclrr"], "unknown method 'simclrr'; did you mean 'simclr'?"),
        (["show", "byool"], "did you mean 'byol'?"),
        (["pretrain", "simclr", "--temprature", "0.2"], "--temperature"),
        (["pretrain", "simclr", "--temperature", "warm"], "warm"),
        (["pretrain", "simclr", *TINY, "--backbone", "resnet81"], "resnet"),
        (["pretrain", "simclr", "--data", "no/such/folder"], "no/such/folder"),
        (["pretrain", "simclr", *TINY, "--batch-size", "4096"], "larger than the data, 512 images"),
        (["pretrain", "simclr", *TINY, "--batch-size", "63", "--accumulate", "2"], "does not divide"),
        (["pretrain", "simclr", *TINY, "--epochs", "0"], "--epochs is 0"),
        (["pretrain", "simclr", *TINY, "--max-time", "soon"], "write 90s, 30m, 12h or 2d"),
        (["pretrain", "mae", "--data", "world:512", "--image-size", "30", "--batch-size", "64"], "30"),
        (["pretrain", "ibot", *TINY, "--momentum", "1.5"], "--momentum must lie between 0 and 1, not 1.5"),
        (["pretrain", "ibot", *TINY, "--small-crops", "-1"], "--small-crops must be 0 or greater, not -1"),
        (["pretrain", "ibot", *TINY, "--temperature-epochs", "-1"], "--temperature-epochs must be 0 or greater"),
        (["pretrain", "ibot", *TINY, "--drop-path", "2"], "--drop-path must lie between 0 and 1, not 2"),
        (["pretrain", "mae", *TINY, "--mask-ratio", "nan"], "--mask-ratio must be a finite number, not nan"),
        (["pretrain", "dvae", *TINY, "--codes", "1"], "--codes must be at least 2, not 1"),
        (["pretrain", "simclr", *TINY, "--device", "cuda"], "no GPU"),
        (["pretrain", "simclr", *TINY, "--init-from", "no/run"], "no run at no/run"),
        (["evaluate", "no/run"], "no run at no/run"),
        (["pretrain", "--from"], "--from needs"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available() and "cuda" in words:
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    assert told in refused(words, capsys)
    assert not list(tmp_path.iterdir()), "a refused call leaves nothing behind"


def test_an_empty_folder_and_one_without_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(["pretrain", "simclr", "--data", "empty"], capsys)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("no image")
    assert "texts" in refused(["pretrain", "simclr", "--data", "texts", "--image-size", "32"], capsys)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run on a folder of images, two of them broken."""
    folder = tmp_path_factory.mktemp("run")
    images = folder_of_images(folder, 80)
    (images / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    whole = (images / "class1" / "1.png").read_bytes()
    (images / "class1" / "cut.png").write_bytes(whole[: len(whole) // 2])
    out = folder / "runs" / "first"
    said = done(
        [
            "pretrain",
            "simclr",
            "--data",
            str(images),
            "--backbone",
            "small_cnn",
            "--batch-size",
            "16",
            "--epochs",
            "2",
            "--log-every",
            "1",
            "--out",
            str(out),
            "--temperature",
            "0.3",
            "--image-size",
            "32",
        ],
        SELFSIGHT_CACHE=str(folder / "cache"),
    )
    assert "of 66 images could not be read" in said  # four fifths of 82 are for training
    return out


@pytest.mark.slow
class TestAFinishedRun:
    def test_its_folder_holds_what_was_promised(self, run: Path) -> None:
        for name in ("run.yaml", "metrics.csv", "timings.csv", "skipped.csv", "encoder.safetensors", "report.html"):
            assert (run / name).stat().st_size > 0, name
        settings = yaml.safe_load((run / "run.yaml").read_text())
        assert settings["hyper"] == {"temperature": 0.3}
        assert settings["resolved"]["batch_size"] == 16
        with open(run / "metrics.csv", newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert [int(row["step"]) for row in rows if row["loss"]] == list(range(8))
        assert all(np.isfinite(float(row["loss"])) for row in rows if row["loss"])
        assert "broken.png" in (run / "skipped.csv").read_text()

    def test_it_is_never_overwritten_unasked(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (run / "encoder.safetensors").read_bytes()
        data = yaml.safe_load((run / "run.yaml").read_text())["flags"]["data"]
        words = ["pretrain", "simclr", "--data", data, "--image-size", "32", "--batch-size", "16", "--out", str(run)]
        assert "holds another run" in refused(words, capsys)
        assert (run / "encoder.safetensors").read_bytes() == before

    def test_resuming_with_other_settings_says_which(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["pretrain", "simclr", "--out", str(run), "--resume", "--lr", "0.5", "--temperature", "0.1"]
        told = refused(words, capsys)
        assert "--lr None -> 0.5" in told
        assert "--temperature 0.3 -> 0.1" in told

    def test_a_run_of_a_newer_version_is_refused(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        newer = yaml.safe_load((run / "run.yaml").read_text()) | {"format": 99}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(newer))
        assert "newer selfsight" in refused(["report", str(tmp_path)], capsys)

    def test_a_checkpoint_cut_short_is_refused(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "run.yaml").write_bytes((run / "run.yaml").read_bytes())
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.pt").write_bytes((run / "checkpoints" / "last.pt").read_bytes()[:5000])
        words = ["pretrain", "simclr", "--out", str(tmp_path), "--resume"]
        assert "cut short" in refused(words, capsys)

    def test_an_unknown_protocol_is_refused(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "knn" in refused(["evaluate", str(run), "--protocol", "knnn"], capsys)

    def test_it_is_evaluated_embedded_and_exported(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        main(["evaluate", str(run), "--protocol", "knn,linear,quality"])
        assert (run / "evaluation" / "knn.json").exists()
        main(["embed", str(run), "--out", str(tmp_path / "features.parquet")])
        assert (tmp_path / "features.parquet").stat().st_size > 0
        main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "exported")])
        main(["report", str(run)])
        assert "report.html" in capsys.readouterr().out

    def test_run_yaml_repeats_it_bit_for_bit(self, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "again"
        done(["pretrain", "--from", str(run / "run.yaml"), "--out", str(out), "--no-report"])
        assert (out / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


def steps_seen(out: Path) -> int:
    path = out / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def wait_for(condition: object, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # pyright: ignore[reportCallIssue]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


LONG = ["pretrain", "moco_v2", *TINY, "--epochs", "3", "--log-every", "1", "--probe-every", "0", "--no-report"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, precision: str) -> None:
    words = [*LONG, "--precision", precision, "--queue", "128"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done([*words, "--out", str(whole)])
    process = started([*words, "--out", str(killed), "--save-minutes", "0"])
    wait_for(lambda: steps_seen(killed) >= 11, process)  # in the middle of the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "encoder.safetensors").exists(), "it had ended before it was killed"
    done([*words, "--out", str(killed), "--resume"])
    assert (killed / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    left, right = (
        torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["method"] for folder in (whole, killed)
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started([*LONG, "--queue", "128", "--out", str(out)])
    wait_for(lambda: steps_seen(out) >= 3, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "interrupted: saved; go on with the same command and --resume" in said
    assert "Traceback" not in said
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] >= 3


@pytest.mark.slow
def test_two_devices_learn_what_one_learns(tmp_path: Path) -> None:
    words = ["pretrain", "simclr", *TINY, "--epochs", "1", "--log-every", "1", "--precision", "32", "--no-report"]
    done([*words, "--out", str(tmp_path / "one")])
    said = done([*words, "--out", str(tmp_path / "two"), "--devices", "2"])
    assert "processes 2" in said
    losses = []
    for name in ("one", "two"):
        with open(tmp_path / name / "metrics.csv", newline="") as lines:
            losses.append([float(row["loss"]) for row in csv.DictReader(lines) if row["loss"]])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_max_time_saves_and_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*LONG, "--queue", "128", "--out", str(tmp_path / "run"), "--max-time", "0.1s"])
    assert "--max-time 0.1s is over: saved" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_several_processes_that_are_interrupted_save_and_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*LONG, "--queue", "128", "--out", str(out), "--devices", "2"]
    process = started(words)
    wait_for(lambda: steps_seen(out) >= 3, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "interrupted: saved" in said
    assert "failed" not in said
    step = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert step >= 3
    said = done([*words, "--resume", "--max-time", "0.1s"])
    assert "is over: saved" in said
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] > step


@pytest.mark.skipif(os.name != "posix", reason="elsewhere an orphan keeps its parent's number")
def test_processes_whose_parent_is_killed_save_and_leave(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*LONG, "--queue", "128", "--out", str(out), "--devices", "2"]
    words[words.index("--epochs") + 1] = "40"
    process = started(words)
    wait_for(lambda: steps_seen(out) >= 3, process)
    process.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=120)[0]  # to the end of all that write there
    assert "interrupted: saved" in said
    assert "failed" not in said
    assert 3 <= torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] < 320


def test_a_launchers_process_makes_its_folder_and_overwrites_nothing(tmp_path: Path) -> None:
    """As torchrun starts one: with its environment, and nobody to make the folder before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), "0")
    place |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = ["pretrain", "simclr", *TINY, "--epochs", "1", "--no-report", "--out", str(tmp_path / "run")]
    done(words, **place)
    before = (tmp_path / "run" / "encoder.safetensors").read_bytes()
    assert "holds another run" in done([*words, "--seed", "5"], code=2, **place)
    assert (tmp_path / "run" / "encoder.safetensors").read_bytes() == before


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("simclr", "moco_v2", "byol", "swav", "dino", "barlow_twins", "mae"))
    main(["show", "beit", "--image-size", "32"])
    assert "26 of 64 patches" in capsys.readouterr().out  # what needs a tokenizer is shown without one
    main(["show", "simclr", "--image-size", "32"])
    shown = capsys.readouterr().out
    assert "2002.05709" in shown
    assert "--temperature" in shown
