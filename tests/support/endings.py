"""A short run and how it ended: to be killed, and compared with the one that nobody killed."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from forked import Ended, Warm
from PIL import Image

RUN = (
    "pretrain moco_v2 --image-size 16 --backbone tiny_cnn --batch-size 16 --queue 32 --epochs 3 --log-every 2 "
    "--probe-every 1 --save-minutes 0.001 --precision 32 --threads 1 --workers 0 --logger none"
).split()


class Whole(NamedTuple):
    """The run that nobody killed: its command and folder, its processor time, its writes and renamings."""

    words: list[str]
    out: Path
    seconds: float
    events: Counter[tuple[str, str]]


def pictures(folder: Path, names: tuple[str, str] = ("cat", "dog"), start: str = "") -> Path:
    """A folder of small images in two classes, which are decoded as they are first read."""
    drawn = np.random.default_rng(0)
    for k in range(60):
        path = folder / names[k % 2] / f"{start}{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def whole_run(warm: Warm, data: str, place: Path) -> Whole:
    """Runs twice: what the first had to import, the second has at hand, as all that are to be killed."""
    words = [*RUN, "--data", data]
    first = warm.command([*words, "--out", str(place / "first")], cache=place / "cache-first", events=True)
    ended = warm.command([*words, "--out", str(place / "run")], cache=place / "cache")
    assert first.code == ended.code == 0, first.said + ended.said
    return Whole(words, place / "run", ended.seconds, Counter((kind, name) for kind, name in first.events))


def goes_on(warm: Warm, words: list[str], out: Path, cache: Path, **conditions: Any) -> Ended:
    """The command that a user gives after a kill: ``--resume``; where that is refused, what the refusal advises."""
    words = [*words, "--out", str(out)]
    if not out.exists():
        return warm.command(words, cache=cache, **conditions)
    ended = warm.command([*words, "--resume"], cache=cache, **conditions)
    if ended.code == 2 and "it has no run.yaml" in ended.said:
        return warm.command(words, cache=cache, **conditions)
    if ended.code == 2 and "there is no checkpoint" in ended.said:  # it died before the first
        return warm.command([*words, "--overwrite"], cache=cache, **conditions)
    return ended


def same(left: Any, right: Any) -> bool:
    """Bit for bit, however it is nested; ``seconds``, which are timings, apart."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left if key != "seconds")
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def same_weights(out: Path, whole: Path) -> bool:
    """Whether both checkpoints and the encoder are those of the whole run."""
    pairs = [
        [torch.load(place / "checkpoints" / name, weights_only=True) for place in (out, whole)]
        for name in ("last.pt", "best.pt")
    ]
    encoders = [(place / "encoder.safetensors").read_bytes() for place in (out, whole)]
    return encoders[0] == encoders[1] and all(same(*pair) for pair in pairs)


def same_metrics(out: Path, whole: Path) -> bool:
    """Whether the curves are those of the whole run, byte for byte."""
    return (out / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def left_over(out: Path, whole: Path) -> list[str]:
    """The files that one of the two has and the other has not, and a report that is not whole."""
    names = [{str(p.relative_to(place)) for p in place.rglob("*")} for place in (out, whole)]
    page = (out / "report.html").read_text(encoding="utf-8").rstrip()
    return sorted(names[0] ^ names[1]) + ["report.html is cut short"] * (not page.endswith("</html>"))


def one_line(said: str) -> bool:
    """Whether a refusal is one line for a person."""
    return said.count("selfsight: ") == 1 and "Traceback" not in said
