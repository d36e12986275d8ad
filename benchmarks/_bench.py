"""What the benchmarks share: contenders timed in turns, and one file of figures for each question.

A machine's speed changes from minute to minute, so contenders take turns and what counts is the ratio within a round;
figures are medians over the rounds.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from selfsight.data.protocol import DataError
from selfsight.engine.machine import cpu_name
from selfsight.errors import TrainingError, UserError

HERE = Path(__file__).parent
PEERS = "lightly kornia stable-pretraining faiss-cpu scikit-learn torchvision timm".split()


@contextmanager
def in_one_line() -> Iterator[None]:
    """What a call got wrong, and Ctrl-C, end it in one line, as they do the command line's."""
    try:
        yield
    except KeyboardInterrupt:
        print("selfsight: interrupted; what is measured is kept, and the same call goes on", file=sys.stderr)
        raise SystemExit(130) from None
    except (UserError, DataError, TrainingError) as error:
        print(f"selfsight: {error}", file=sys.stderr)
        raise SystemExit(2) from None


Work = Callable[[], int]
"""Does something once; returns how many items that were."""


def flags(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{name}.json, on a GPU {name}_cuda.json")
    return parser


def in_turns(contenders: Mapping[str, Work], *, rounds: int = 5, seconds: float = 1.0) -> dict[str, list[float]]:
    """Items a second of each contender in each round, which gives it at least ``seconds``."""
    return turns({name: partial(rate, work, seconds) for name, work in contenders.items()}, rounds=rounds)


def rate(work: Work, seconds: float) -> float:
    """Items a second over at least ``seconds``."""
    _wait()
    began, items = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        items += work()
        _wait()
    return items / (time.perf_counter() - began)


def turns(measures: Mapping[str, Callable[[], float]], *, rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """What each measures in each round, for contenders that take their own time; ``warm``: a round before them."""
    for measure in measures.values() if warm else ():
        measure()
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(
    what: str,
    unit: str,
    ours: Sequence[float],
    against: str,
    theirs: Sequence[float],
    *,
    target: float | None = None,
    less: bool = False,
) -> dict[str, Any]:
    """One line of the table: the ratio says how many times better ours is, where ``less`` is better too."""
    ratio = statistics.median(b / a if less else a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "what": what,
        "unit": unit,
        "ours": _short(statistics.median(ours)),
        "against": against,
        "theirs": _short(statistics.median(theirs)),
        "ratio": _short(ratio),
        "target": target,
        "met": None if target is None else ratio >= target,
    }


def bound(what: str, unit: str, ours: float, *, at_most: float) -> dict[str, Any]:
    """A line of the table for a bar that is no peer's: ``ours`` may be ``at_most``."""
    return {
        "what": what,
        "unit": unit,
        "ours": _short(ours),
        "against": "bound",
        "theirs": at_most,
        "ratio": _short(at_most / max(ours, 1e-12)),
        "target": 1,
        "met": ours <= at_most,
    }


def at_least(what: str, unit: str, ours: float, bar: float) -> dict[str, Any]:
    """A line of the table for a bar that is no peer's and that ``ours`` must reach."""
    return row(what, unit, [ours], "bound", [bar], target=1.0)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def save(name: str, given: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Prints the lines and writes them, with machine, versions and date."""
    show(rows)
    result = {"rows": list(rows), **more, **provenance(given.device)}
    out = given.out or HERE / "results" / (f"{name}.json" if given.device == "cpu" else f"{name}_{given.device}.json")
    write(out, result)


def write(out: Path, result: Mapping[str, Any]) -> None:
    """Writes one file of figures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(out)


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where and when figures were measured."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system(), **gpu},
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **peers()},
        "date": datetime.date.today().isoformat(),
    }


def peers() -> dict[str, str]:
    """The versions of the peers that are installed."""
    found: dict[str, str] = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints lines of the table."""
    for r in rows:
        bar = "" if r["target"] is None else f"  target {r['target']:g}  {'met' if r['met'] else 'NOT MET'}"
        print(
            f"{r['what']:<58} {r['ours']:>10,g} {r['unit']:<10} {r['against']:<22} {r['theirs']:>10,g} "
            f"{r['ratio']:>8.2f} x{bar}",
            flush=True,
        )
