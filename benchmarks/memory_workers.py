"""The private memory of loading does not grow with the data, nor a worker's with their number.

    python benchmarks/memory_workers.py [--out benchmarks/results/memory_workers.json]

Folders of 10,000 and 200,000 JPEGs (hard links), 0, 1, 2 and 4 workers; ten updates of 64 images in two 96-pixel views.
Then, from /proc, the main process's and the workers' Pss_Anon (private memory, shared pages counted in part) and
RssAnon. Mapped files (the index) are not in it: their pages belong to the system's cache and are shared. Linux only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _bench import HERE, provenance, write
from folder_start import make_folder

SWEEP = """
import json, multiprocessing, os, sys
from pathlib import Path
from selfsight.data.loader import Loader
from selfsight.data.opening import open_data
from selfsight.views.augment import simclr
from selfsight.views.pipelines import two_views

def field(pid, file, name):
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024

source = open_data(sys.argv[1], split="all")
loader = Loader(source, two_views(simclr(96)), batch_size=64, seed=0, workers=int(sys.argv[2]))
for micro in loader.stream(0, 10):
    pass
pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
pss, rss = ([field(pid, *what) for pid in pids] for what in (("smaps_rollup", "Pss_Anon"), ("status", "RssAnon")))
loader.close()
print(json.dumps({"pss_main": pss[0], "pss_workers": sum(pss[1:]), "pss": sum(pss), "rss_main": rss[0],
                  "rss_worker": max(rss[1:], default=0)}))
"""


def sweep(root: Path, cache: Path, workers: int) -> dict[str, float]:
    """One process that loads from ``root``; MiB."""
    environment = {**os.environ, "SELFSIGHT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SWEEP, str(root), str(workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {name: round(value, 1) for name, value in json.loads(done.stdout).items()}


def main() -> None:
    """Measures every size and number of workers; prints and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory_workers.json")
    flags = parser.parse_args()
    rows = []
    for files in flags.files:
        top = Path(tempfile.mkdtemp(prefix="memory_workers"))
        try:
            make_folder(top / "images", files)
            for index in ("written", "mapped"):  # in the first process, in the second
                rows.append({"files": files, "workers": 0, "index": index, **sweep(top / "images", top / "cache", 0)})
                print(rows[-1])
            for workers in flags.workers[1:]:
                row = {"files": files, "workers": workers, "index": "mapped"}
                rows.append({**row, **sweep(top / "images", top / "cache", workers)})
                print(rows[-1])
        finally:
            shutil.rmtree(top)
    write(flags.out, {"unit": "MiB", "rows": rows, **provenance()})


if __name__ == "__main__":
    main()
