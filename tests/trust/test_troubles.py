"""A run whose disk fills up, whose data change while it lies still, whose clock jumps, whose checkpoint is damaged."""

import csv
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from endings import RUN, Whole, goes_on, left_over, one_line, pictures, same_metrics, same_weights, whole_run
from forked import Warm
from promises import Promises

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads Linux's clock of another process")


@pytest.fixture(scope="module")
def whole(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = pictures(tmp_path_factory.mktemp("data") / "pictures")
    return whole_run(warm, str(folder), tmp_path_factory.mktemp("whole"))


def as_it_should(out: Path, whole: Whole) -> bool:
    return same_weights(out, whole.out) and same_metrics(out, whole.out) and not left_over(out, whole.out)


def stopped(warm: Warm, words: list[str], out: Path, **conditions: float) -> None:
    """A run that died after the first probe, while it wrote a checkpoint."""
    died = {"die_at": ["before renaming", "last.pt", 5], **conditions}
    ended = warm.command([*words, "--out", str(out), "--save-minutes", "0"], cache=out.parent / "cache", **died)
    assert ended.killed, ended.said
    assert {"last.pt", "best.pt"} <= {path.name for path in (out / "checkpoints").iterdir()}


@pytest.mark.parametrize("sizes", [5, pytest.param(25, marks=pytest.mark.trust)])
def test_a_disk_that_fills_up(sizes: int, warm: Warm, whole: Whole, tmp_path: Path, promise: Promises) -> None:
    said = promise("a run whose disk fills up ends in one line that says so and how to go on")
    kept = promise("a run whose disk was full ends, with room again, as the one whose disk was not")
    most = sum(p.stat().st_size for p in whole.out.rglob("*") if p.is_file())
    most += (whole.out / "report.html").stat().st_size  # while a file is replaced, both are there
    for k in range(sizes):
        out, room = tmp_path / f"run{k}", most * (2 * k + 1) // (2 * sizes)
        case = f"room for {room:,} of {most:,} bytes"
        words = [*whole.words, "--out", str(out)]
        full = warm.command(words, cache=tmp_path / f"cache{k}", disk=[str(out), room])
        if full.code:
            told = "full" in full.said or "No space left" in full.said
            said(full.code == 2 and one_line(full.said) and told and "--resume" in full.said, f"{case}: {full.said}")
        ended = goes_on(warm, whole.words, out, tmp_path / f"cache{k}")
        kept(ended.code == 0 and as_it_should(out, whole), f"{case}: {ended.said}")


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image more": lambda data: shutil.copy(data / "cat/0.png", data / "cat/more.png"),
    "an image fewer": lambda data: (data / "cat/0.png").unlink(),
    "another name": lambda data: (data / "cat/0.png").rename(data / "cat/zero.png"),
    "another class": lambda data: (data / "cat/0.png").rename(data / "dog/0.png"),
    "another size": lambda data: (data / "cat/0.png").write_bytes((data / "cat/0.png").read_bytes()[:-50]),
}


def test_data_that_change_between_kill_and_resume(warm: Warm, whole: Whole, tmp_path: Path, promise: Promises) -> None:
    refused = promise("data that changed since a run was killed are refused in one line, with both ways on")
    back = promise("a run whose data were changed and brought back ends as the one whose data were not")
    data, kept, out = tmp_path / "data", tmp_path / "kept", tmp_path / "run"
    shutil.copytree(whole.words[-1], data)
    shutil.copytree(data, kept)
    words = [*RUN, "--data", str(data)]
    stopped(warm, words, out)
    for name, change in CHANGES.items():
        change(data)
        ended = goes_on(warm, words, out, tmp_path / "cache")
        ways = all(part in ended.said for part in ("has changed since", "back and --resume", f"--init-from {out}"))
        refused(ended.code == 2 and one_line(ended.said) and ways, f"{name}: {ended.said}")
        if name == "an image fewer":
            begun = [*words, "--init-from", str(out), "--out", str(tmp_path / "new"), "--epochs", "1", "--no-report"]
            ended = warm.command(begun, cache=tmp_path / "cache")
            refused(ended.code == 0 and "begins with all weights" in ended.said, f"--init-from: {ended.said}")
        shutil.rmtree(data)
        shutil.copytree(kept, data)
    for path in data.rglob("*.png"):
        os.utime(path, (4e9, 4e9))  # copied anew, by a machine whose clock is wrong
    ended = goes_on(warm, words, out, tmp_path / "cache")
    back(ended.code == 0 and as_it_should(out, whole), ended.said)


def test_a_clock_that_jumps(warm: Warm, whole: Whole, tmp_path: Path, promise: Promises) -> None:
    kept = promise(
        "a clock set forward and back by days changes neither a run's weights nor its metrics nor its length"
    )
    spent = promise("a clock set forward and back by days leaves a run's own times growing")
    out, days = tmp_path / "run", {"clock": 4e6}
    words = [*whole.words, "--max-time", "1h"]
    stopped(warm, words, out, **days)
    ended = goes_on(warm, words, out, tmp_path / "cache", **days)
    kept(ended.code == 0 and as_it_should(out, whole), ended.said)
    with (out / "timings.csv").open(encoding="utf-8") as lines:
        seconds = [float(row["seconds"]) for row in csv.DictReader(lines)]
    spent(seconds == sorted(seconds) and seconds[-1] < 3600, str(seconds))


def test_a_damaged_checkpoint_says_how_to_go_on(warm: Warm, whole: Whole, tmp_path: Path, promise: Promises) -> None:
    told = promise("a run whose last.pt is damaged says in one line that best.pt can take its place")
    kept = promise("a run that went on from best.pt ends as the one that did not have to")
    out = tmp_path / "run"
    stopped(warm, whole.words, out)
    last, best = out / "checkpoints" / "last.pt", out / "checkpoints" / "best.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    words = [*whole.words, "--out", str(out)]
    refused = warm.command([*words, "--resume"], cache=tmp_path / "cache")
    line = f"damaged or no checkpoint); copy {best} over it and --resume"
    told(refused.code == 2 and one_line(refused.said) and line in refused.said, refused.said)
    shutil.copy(best, last)
    ended = warm.command([*words, "--resume"], cache=tmp_path / "cache")
    kept(ended.code == 0 and as_it_should(out, whole), ended.said)
