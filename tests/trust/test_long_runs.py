"""Long runs: 20,000 updates of a small run, watched from outside. Its memory, files and speed stay as they were."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from selfsight.data.loader import Loader
from selfsight.data.world import World
from selfsight.recipes import catalogue

MEMORY = "anonymous memory of a long run does not grow by 300 bytes an update from quarter to quarter, after the first"
OPEN = "the files that a long run holds open do not grow in number"
SHARED = "a long run leaves nothing in shared memory, and holds no more of it at its end than at its beginning"
SPEED = "processor time an update in the last quarter of a long run is at most 1.5 times that of the first"
LOGS = "metrics, timings and TensorBoard's events take less than 100 bytes an update"
SAID = "what a long run says does not grow with its updates: less than 20 lines and two a minute"

_TICK = os.sysconf("SC_CLK_TCK")


class Sample(NamedTuple):
    """A look at the processes of a run at one moment."""

    step: int
    anonymous: int
    files: int
    shared: int
    seconds: float
    """Processor time of the run's own process since its beginning."""


def watched(words: list[str], out: Path, *, every: float) -> tuple[list[Sample], str, float]:
    """Samples of a run in a process of its own, what it said, and how many seconds it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SELFSIGHT_CACHE": str(out.parent / "cache")}
    began = time.monotonic()
    with open(out.parent / "said.txt", "w+", encoding="utf-8") as said:
        command = [sys.executable, "-m", "selfsight", *words, "--out", str(out)]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        samples: list[Sample] = []
        while process.poll() is None:
            samples += _sample(process.pid, out)
            time.sleep(every)
        said.seek(0)
        text = said.read()
    assert process.returncode == 0, text
    return samples, text, time.monotonic() - began


def _sample(pid: int, out: Path) -> list[Sample]:
    try:
        step = _last_step(out / "metrics.csv")
        family = [pid, *_children(pid)]
        anonymous = sum(map(_anonymous, family))
        files = sum(len(os.listdir(f"/proc/{one}/fd")) for one in family)
        own = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        seconds = (int(own[11]) + int(own[12])) / _TICK
    except (OSError, ValueError, StopIteration):  # not begun yet, or just ended
        return []
    return [Sample(step, anonymous, files, shared_memory(), seconds)]


def _last_step(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        return int(file.read().split(b"\n")[-2].split(b",")[0])


def _children(pid: int) -> Iterator[int]:
    for task in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
        for child in map(int, text.split()):
            yield child
            yield from _children(child)


def _anonymous(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def shared_memory() -> int:
    """Bytes in /dev/shm; of other programs as well."""
    total = 0
    for entry in os.scandir("/dev/shm"):
        with suppress(FileNotFoundError):  # gone since it was listed
            total += entry.stat().st_size if entry.is_file(follow_symlinks=False) else 0
    return total


def judge(samples: list[Sample], said: str, seconds: float, *, steps: int, out: Path, promise) -> None:
    """Compares the quarters of a run; what follows its last update is in none."""
    samples = [s for s in samples if s.step < steps - 1]
    quarters = [[s for s in samples if k * steps <= 4 * s.step < (k + 1) * steps] for k in range(4)]
    assert all(len(quarter) >= 5 for quarter in quarters), [len(quarter) for quarter in quarters]

    def least(quarter: int, name: str) -> float:  # what is kept is in each look; a probe's workers are in some
        return min(getattr(s, name) for s in quarters[quarter])

    # a leak grows in every quarter; a worker's copy of a page that its parent had is made once, at any time
    grown = min(least(k + 1, "anonymous") - least(k, "anonymous") for k in (1, 2)) / (steps / 4)
    promise(MEMORY)(grown < 300, f"{grown:.0f} bytes an update, {least(3, 'anonymous') / 2**20:.0f} MiB at the end")
    promise(OPEN)(least(3, "files") <= least(1, "files"), f"{least(1, 'files')} -> {least(3, 'files')}")
    promise(SHARED)(
        least(3, "shared") <= least(1, "shared") + (1 << 20), f"{least(1, 'shared')} -> {least(3, 'shared')}"
    )
    cost = [
        (quarter[-1].seconds - quarter[0].seconds) / max(quarter[-1].step - quarter[0].step, 1)
        for quarter in (quarters[0], quarters[3])
    ]
    promise(SPEED)(cost[1] <= 1.5 * cost[0], f"{1e3 * cost[0]:.2f} -> {1e3 * cost[1]:.2f} ms an update")
    logs = [out / "metrics.csv", out / "timings.csv", out / "alarms.csv", *out.glob("events.out.tfevents*")]
    size = sum(path.stat().st_size for path in logs)
    promise(LOGS)(size < 100 * steps, f"{size / steps:.0f} bytes an update")
    lines = said.splitlines()
    promise(SAID)(len(lines) < 20 + 2 * seconds / 60, f"{len(lines)} lines in {seconds:.0f} s")
    print(
        f"{steps} updates: {least(1, 'anonymous') / 2**20:.1f} -> {least(3, 'anonymous') / 2**20:.1f} MiB, "
        f"{least(3, 'files'):.0f} files open, {1e3 * cost[0]:.2f} -> {1e3 * cost[1]:.2f} ms of processor time an "
        f"update, {size / steps:.1f} bytes of logs an update, {len(lines)} lines said"
    )


@pytest.mark.trust
def test_twenty_thousand_updates(tmp_path: Path, promise) -> None:
    steps = 20_000
    small = ["--data", "world:200", "--image-size", "16", "--backbone", "tiny_cnn", "--batch-size", "4"]
    quick = ["--optimiser", "adamw", "--precision", "32", "--threads", "1", "--no-report", "--save-minutes", "0.2"]
    more = [*quick, "--epochs", str(steps // 50), "--probe-every", "40"]
    out = tmp_path / "run"
    samples, said, seconds = watched(["pretrain", "simclr", *small, *more], out, every=0.5)
    judge(samples, said, seconds, steps=steps, out=out, promise=promise)


@pytest.mark.trust
def test_with_workers(tmp_path: Path, promise) -> None:
    """Larger images, which two workers decode; a probe after each few epochs, which starts workers of its own; and
    some that cannot be read, in every epoch."""
    steps, n = 4_000, 200
    for i in range(n):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, quality=60)
        if i % 40 == 0:
            path.write_bytes(path.read_bytes()[:900])
    before, out = shared_memory(), tmp_path / "run"
    small = ["--data", str(tmp_path / "images"), "--image-size", "16", "--backbone", "tiny_cnn", "--batch-size", "8"]
    epochs = steps // 20  # a fifth of the images is held back
    more = [
        "--epochs",
        str(epochs),
        "--probe-every",
        str(epochs // 12),
        "--workers",
        "2",
        "--no-report",
        "--threads",
        "1",
    ]
    samples, said, seconds = watched(["pretrain", "simclr", *small, *more, "--save-minutes", "0.2"], out, every=0.4)
    judge(samples, said, seconds, steps=steps, out=out, promise=promise)
    promise(SHARED)(shared_memory() <= before + (1 << 20), f"{before} -> {shared_memory()}")
    with open(out / "skipped.csv", newline="", encoding="utf-8") as lines:
        told = [row["where"] for row in csv.DictReader(lines)]
    promise("an image that cannot be read is told once in a long run")(len(told) == len({*told}) <= 5, str(told))


def test_a_run_of_many_updates_begins_at_once(promise) -> None:
    """No list of all updates is made: a run of a thousand million of them begins as one of ten."""
    kept = promise("what a run holds in memory does not depend on how many updates it is to make")
    for size in (16, 128):
        source = World(16, size=size, split="train")
        views = catalogue.tiny("simclr").views
        loader = Loader(source, views, batch_size=8, seed=0, workers=0, accumulate=2)
        micro = next(loader.stream(0, 10**9))
        kept(micro.step == 0 and micro.micro == 0, f"{size} px")
