"""A run that is killed at any instant, and goes on, ends as the run that never was.

A kill is SIGKILL at an instant drawn from the processor time of the whole run (so a busy machine draws the same
instants), or in the middle of a write, or beside a renaming, drawn from those that the run makes.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endings import Whole, goes_on, left_over, pictures, same_metrics, same_weights, whole_run
from forked import Warm
from promises import Promises

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's clock of another process")

WRITTEN = ("last.pt", "best.pt", "metrics.csv", "run.yaml", "report.html", "encoder.safetensors", "encoder.json")


@pytest.fixture(scope="module")
def wholes(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> list[Whole]:
    """Of the embedded world, and of a folder whose images are decoded."""
    folder = pictures(tmp_path_factory.mktemp("data") / "pictures")
    return [whole_run(warm, data, tmp_path_factory.mktemp("whole")) for data in ("world:64", str(folder))]


def drawn_kill(drawn: random.Random, whole: Whole, number: int) -> dict[str, Any]:
    """Every second kill at an instant; every other one at a write or a renaming of each file in turn."""
    if number % 2 == 0:
        return {"kill_after": drawn.uniform(0, whole.seconds)}
    name = WRITTEN[number // 2 % len(WRITTEN)]
    kind = drawn.choice(sorted(kind for kind, which in whole.events if which == name))
    return {"die_at": [kind, name, drawn.randint(1, max(whole.events[kind, name] // 3, 1))]}


def killed_runs(warm: Warm, wholes: list[Whole], tmp: Path, kills: int) -> Iterator[tuple[list[str], Whole, Path]]:
    """Begins runs and kills them until there were so many kills; yields each run that has come to its end."""
    drawn, done, runs = random.Random(kills), 0, 0
    while done < kills:
        assert runs < 3 * kills, "most runs end before they are killed"
        whole, out, cache = wholes[runs % len(wholes)], tmp / f"run{runs}", tmp / f"cache{runs}"
        killed: list[str] = []
        while True:
            how = drawn_kill(drawn, whole, done) if done < kills else {}
            ended = goes_on(warm, whole.words, out, cache, **how)
            if ended.code == 0:
                break
            assert ended.killed, f"{killed}, {how}: {ended.said}"
            done += 1
            killed.append(f"kill {done} of {kills}, {how}, of run {runs}")
        yield killed, whole, out
        runs += 1


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.trust)])
def test_a_killed_run_ends_as_the_one_that_was_not(
    kills: int, warm: Warm, wholes: list[Whole], tmp_path: Path, promise: Promises
) -> None:
    weights = promise("a run killed at a random instant ends with the weights of the one that was not, bit for bit")
    metrics = promise("a run killed at a random instant ends with the metrics.csv of the one that was not")
    rest = promise("a run killed at a random instant ends with a whole report and no file that was half written")
    for killed, whole, out in killed_runs(warm, wholes, tmp_path, kills):
        for kill in killed:
            weights(same_weights(out, whole.out), kill)
            metrics(same_metrics(out, whole.out), kill)
            rest(not left_over(out, whole.out), f"{kill}: {left_over(out, whole.out)}")
