"""How long a folder of a million images takes to its first batch, without an index (cold) and with one (warm).

    python benchmarks/folder_start.py [--files 1000000] [--out benchmarks/results/folder_start.json]

The folder is made in a temporary directory of hard links to a hundred small JPEGs, a thousand files a folder, and
deleted at the end. Each start is a process of its own; the clock runs from the call of ``open_data`` to the first batch
of two 224-pixel views, with one worker; imports are stated apart, and the main process's own CPU time, which other work
on the machine doesn't lengthen. Cold means that there is no index; the file system's
own caches are left as they are. Issue's bounds for 1,000,000 files: 15 s cold, 2 s warm.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from _bench import HERE, bound, provenance, show, write

REAL, PER_FOLDER = 100, 1000

START = """
import json, sys, time
began = time.perf_counter()
from selfsight.data.loader import Loader
from selfsight.data.opening import open_data
from selfsight.views.augment import simclr
from selfsight.views.pipelines import two_views
imported, used = time.perf_counter(), time.process_time()
source = open_data(sys.argv[1], split="all")
opened = time.perf_counter()
loader = Loader(source, two_views(simclr(224)), batch_size=64, seed=0, workers=1)
images = next(loader.stream(0, 1)).images
first, used = time.perf_counter(), time.process_time() - used
loader.close()
print(json.dumps({"images": len(source), "classes": len(source.classes), "imports": imported - began,
                  "open": opened - imported, "batch": first - opened, "start": first - imported, "start_cpu": used}))
"""


def make_folder(root: Path, files: int) -> float:
    """Fills ``root`` with ``files`` JPEGs; returns the seconds it took."""
    began = time.perf_counter()
    real = root.parent / "real"
    real.mkdir()
    for i in range(REAL):
        noise = np.random.default_rng(i).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((320, 240)).save(real / f"{i}.jpg")
    for i in range(files):
        if i % PER_FOLDER == 0:
            folder = root / f"class_{i // PER_FOLDER:05}"
            folder.mkdir(parents=True)
        os.link(real / f"{i % REAL}.jpg", folder / f"image_{i:08}.jpg")
    return time.perf_counter() - began


def start(root: Path, cache: Path) -> dict[str, float]:
    """One start in a process of its own."""
    environment = {**os.environ, "SELFSIGHT_CACHE": str(cache)}
    command = [sys.executable, "-c", START, str(root)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {name: round(value, 3) for name, value in json.loads(done.stdout).items()}


def main() -> None:
    """Makes the folder, starts cold once and warm three times, prints and writes what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "folder_start.json")
    flags = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="folder_start"))
    try:
        made = make_folder(top / "images", flags.files)
        print(f"made {flags.files:,} files in {made:.0f} s; load average {os.getloadavg()[0]:.1f}")
        cold = start(top / "images", top / "cache")
        warm = [start(top / "images", top / "cache") for _ in range(3)]
        index = sum(path.stat().st_size for path in (top / "cache" / "index").iterdir())
    finally:
        shutil.rmtree(top)
    best = min(w["start"] for w in warm)
    rows = [bound(f"first batch of a folder of {flags.files:,} files, {how}", "s", t, at_most=bar)
            for how, t, bar in (("cold", cold["start"], 15), ("warm", best, 2))]  # fmt: skip
    show(rows)
    result = {"rows": rows, "files": flags.files, "cold": cold, "warm": warm, "index_bytes": index}
    write(flags.out, {**result, **provenance()})


if __name__ == "__main__":
    main()
