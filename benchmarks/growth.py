"""How time and memory grow: with the batch (loss), the data (index, sampler), the views, and the processes.

    python benchmarks/growth.py

Each series doubles or multiplies one size and leaves the rest. The figures go to results/growth.json and their plots
to docs/images/growth.png.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import HERE, flags, provenance, write
from losses import apart
from selfsight.data.sampler import Sampler
from selfsight.data.world import render
from selfsight.keyed import Key
from selfsight.views import augment
from selfsight.views.pipelines import multi_crop

ME = Path(__file__)


def batch() -> list[dict[str, float]]:
    """NT-Xent forward and backward of 128-wide embeddings on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "kept"
        return [{"pairs": n, **(apart("selfsight", n, "cpu", keep) or {})} for n in (512, 1024, 2048, 4096, 8192)]


def data() -> list[dict[str, float]]:
    """The order of an epoch, and the thousand batches after its middle, for data of 10^4 to 10^7 entries."""
    return [_apart("sampler", n) for n in (10**4, 10**5, 10**6, 10**7)]


def sampler(n: int) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    sampler_ = Sampler(n, batch_size=min(256, n), seed=0, rank=0, world=1, accumulate=1)
    middle = sampler_.steps_per_epoch // 2
    sampler_.micro(middle, 0)
    first = time.perf_counter() - began
    count = min(1000, sampler_.steps_per_epoch - middle)
    began = time.perf_counter()
    for step in range(middle, middle + count):
        sampler_.micro(step, 0)
    each = (time.perf_counter() - began) / count
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"entries": n, "first_batch_s": first, "each_batch_ms": 1000 * each, "mib": mib}


def views() -> list[dict[str, float]]:
    """Rendering 2 crops of 32 px and ever more of 16 px of each image, one thread."""
    torch.set_num_threads(1)
    images, index = torch.from_numpy(render(np.arange(256), size=32).image), torch.arange(256)
    key = Key(0, torch.zeros_like(index), index)
    found = []
    for small in (0, 2, 4, 8, 16):
        large = augment.simclr(32)
        pipeline = multi_crop([large] * 2, [replace(large, size=16)] * small)
        found.append(
            {"views": 2 + small, "images_per_s": 256 / _best(lambda p=pipeline: p.render(images, p.plan(key), key))}
        )
    return found


def _best(work: Callable[[], Any], times: int = 5) -> float:
    work()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def processes() -> list[dict[str, float]]:
    """Updates of SimCLR on the world by one process and by two of one thread each (gloo), the same batch in all."""
    found = []
    for n in (1, 2):
        out = Path("runs") / f"growth-{n}"
        words = (
            "pretrain simclr --data world:1280 --image-size 32 --backbone resnet18 --batch-size 128 --epochs 1 "
            f"--device cpu --devices {n} --threads 1 --probe-every 0 --no-report --log-every 1 --overwrite --out {out}"
        )
        run = [sys.executable, "-m", "selfsight", *words.split()]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = (out / "timings.csv").read_text(encoding="utf-8").splitlines()
        names, rows = lines[0].split(","), [line.split(",") for line in lines[3:]]
        rates = [float(r[names.index("images_per_second")]) for r in rows]
        found.append({"processes": n, "images_per_s": float(np.median(rates))})
    return found


PLOTS = (
    ("batch", "pairs", (("seconds", "s"), ("mib", "MiB")), "NT-Xent, forward and backward"),
    ("data", "entries", (("first_batch_s", "s to the first batch"), ("mib", "MiB")), "order of an epoch"),
    ("views", "views", (("images_per_s", "images/s"),), "rendering"),
    ("processes", "processes", (("images_per_s", "images/s"),), "training"),
)


def plot(series: dict[str, list[dict[str, float]]], out: Path) -> None:
    """One panel a series; both axes logarithmic, so that a straight line is a power law, but for the processes."""
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = [(name, x, y, title) for name, x, ys, title in PLOTS for y in ys]
    for axes, (name, x, (key, unit), title) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        lines = series[name]
        places = [line[x] for line in lines]
        axes.plot(places, [line[key] for line in lines], marker="o")
        axes.set(xlabel=x, ylabel=unit, title=title)
        if name == "processes":
            axes.set_ylim(0, 1.1 * max(line[key] for line in lines))
        else:
            axes.set(xscale="log", yscale="log")
            axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
            axes.yaxis.set_major_formatter(EngFormatter())
        axes.set_xticks(places, [f"{p:,}" if p < 10_000 else EngFormatter(sep="")(p) for p in places])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def _apart(name: str, size: int) -> dict[str, float]:
    words = [sys.executable, str(ME), "--once", name, "--size", str(size)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Measures all series; with --once it is one of the processes."""
    parser = flags(__doc__, "growth")
    parser.add_argument("--once", choices=("sampler",), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plot", action="store_true", help="draw what is in results/growth.json; measure nothing")
    given = parser.parse_args()
    if given.once:
        print(json.dumps(sampler(given.size)))
        return
    picture, out = HERE.parent / "docs" / "images" / "growth.png", given.out or HERE / "results" / "growth.json"
    if given.plot:
        plot(json.loads(out.read_text(encoding="utf-8"))["series"], picture)
        return
    series: dict[str, list[dict[str, float]]] = {}
    for measure in (batch, data, views, processes):
        series[measure.__name__] = measure()
        for line in series[measure.__name__]:
            print(measure.__name__, {k: float(f"{v:.4g}") for k, v in line.items()}, flush=True)
    plot(series, picture)
    write(out, {"series": series, **provenance()})


if __name__ == "__main__":
    main()
