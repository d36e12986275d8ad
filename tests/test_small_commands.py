"""What the longer commands' tests leave out: ``views``, ``bench``, and what is said when memory or disk are full."""

import errno
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight import pretraining
from selfsight.cli import main, views
from selfsight.recipes import catalogue

TINY = ["--data", "world:128", "--image-size", "32", "--backbone", "tiny_cnn", "--batch-size", "32", "--epochs", "1"]


def left_with(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code and the one line that the command leaves with."""
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("selfsight: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return left.value.code, lines[0]


def test_views_draws_the_images_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {}
    for name, more in {
        "first": ["--rows", "2"],
        "again": ["--rows", "2"],
        "later": ["--rows", "2", "--epoch", "3"],
        "others": ["--positions", "5", "--positions", "17", "--positions", "3"],
    }.items():
        out = tmp_path / f"{name}.png"
        main(["views", "simclr", "--data", "world:64", "--image-size", "32", "--out", str(out), *more])
        assert capsys.readouterr().out.strip() == str(out)
        drawn[name] = np.asarray(Image.open(out))
    assert np.array_equal(drawn["first"], drawn["again"])
    assert drawn["later"].shape == drawn["first"].shape
    assert not np.array_equal(drawn["first"], drawn["later"]), "another epoch has other views"
    assert drawn["others"].shape[0] > drawn["first"].shape[0], "three rows instead of two"


@pytest.mark.parametrize("method", list(catalogue.cards()))
def test_views_of_every_method(method: str, tmp_path: Path) -> None:
    card = catalogue.cards()[method]
    size = next((size for size in card.sizes if size >= 32), 32)
    views(method, data="world:6", image_size=size, out=tmp_path / "grid.png", rows=2)
    assert (tmp_path / "grid.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["views", "simclrr"], "did you mean 'simclr'?"),
        (["views", "simclr", "--data", "world:64", "--image-size", "32", "--out", "grid.jpg"], "must end in .png"),
        (["views", "simclr", "--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_views_refuses_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = left_with(words, capsys)
    assert code == 2
    assert told in line
    assert not list(tmp_path.iterdir())


def test_bench_runs_a_script_with_its_own_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    script = "import sys\nfrom pathlib import Path\nPath('said').write_text(' '.join(sys.argv[1:]))\n"
    (tmp_path / "benchmarks" / "weigh.py").write_text(script + "sys.exit(3 * ('--fail' in sys.argv))\n")
    (tmp_path / "benchmarks" / "_parts.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    main(["bench", "weigh", "--limit", "5", "now"])
    assert (tmp_path / "said").read_text() == "--limit 5 now"
    with pytest.raises(SystemExit) as left:
        main(["bench", "weigh", "--fail"])
    assert left.value.code == 3


def test_bench_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = left_with(["bench", "weigh"], capsys)
    assert code == 2
    assert "benchmarks run from a checkout of the repository" in line
    (tmp_path / "benchmarks").mkdir()
    for name in ("weigh", "_parts"):
        (tmp_path / "benchmarks" / f"{name}.py").write_text("")
    for wrong in ("wiegh", "_parts"):
        code, line = left_with(["bench", wrong], capsys)
        assert code == 2
        assert f"unknown benchmark '{wrong}'" in line
        assert "weigh" in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_says_what_to_change(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*given: object) -> None:
        raise error

    monkeypatch.setattr(pretraining, "train", train)
    words = ["pretrain", "simclr", *TINY, "--accumulate", "2", "--out", str(tmp_path / "run")]
    code, line = left_with(words, capsys)
    assert code == 1
    assert line == (
        "selfsight: out of memory at a batch of 32; --accumulate 4 keeps the batch in smaller pieces, "
        "--batch-size 16 halves it, --precision bf16 halves activations"
    )


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*given: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(pretraining, "train", train)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["pretrain", "simclr", *TINY, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("words", "place", "remedy"),
    [
        (["pretrain", "simclr", *TINY], "selfsight.pretraining.run_from_flags", "; free space, then --resume"),
        (["finetune", "some/run"], "selfsight.pipelines.stages.run_stage", "; free space, then --resume"),
        (
            ["pipeline", "simclr_v2", "--out", "new"],
            "selfsight.pipelines.simclr_v2.settle",
            "; free space, then the same command",
        ),
        (
            ["pipeline", "simclr_v2", "--out", "new", "--overwrite"],
            "selfsight.pipelines.simclr_v2.settle",
            "; free space, then the same command without --overwrite",
        ),
        (["report", "some/run"], "selfsight.report.page.write_report", ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_full_disk_is_one_line(
    *,
    number: int,
    words: list[str],
    place: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*given: object, **options: object) -> None:
        raise OSError(number, "No space left on device", "runs/first/metrics.csv")

    importlib.import_module(place.rpartition(".")[0])
    monkeypatch.setattr(place, full)
    code, line = left_with(words, capsys)
    assert code == 2
    assert line == f"selfsight: No space left on device: runs/first/metrics.csv{remedy}"


def test_another_error_of_the_system_has_no_word_of_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*given: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/first")

    monkeypatch.setattr(pretraining, "run_from_flags", denied)
    code, line = left_with(["pretrain", "simclr", *TINY], capsys)
    assert code == 2
    assert line == "selfsight: Permission denied: runs/first"


@pytest.mark.parametrize("name", ["scaling", "ladder"])
def test_a_benchmark_of_methods_says_in_one_line_what_is_wrong(name, tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    words = ["--data", "no/such", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("selfsight: ")
    assert done.stderr.count("\n") == 1
    assert "no/such" in done.stderr
