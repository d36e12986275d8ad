"""How fast the world is rendered, on one core.

    python benchmarks/world_speed.py [--sizes 32 64 224] [--out benchmarks/results/world_speed.json]

Images a second by the clock and by the processor's own time, which differ where the core is shared with others. The
best of several passes over fresh scenes: what else runs on the machine only ever slows a pass down.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from _bench import HERE, at_least, provenance, show, write
from selfsight.data.world import VERSION, render

PASSES, PIXELS = 20, 1 << 20
AT_LEAST = 2000  # images a second at 64 px


def measure(size: int) -> dict[str, int]:
    n = max(4, PIXELS // size**2)
    render(np.arange(4), size=size)  # tables are made at their first use
    clock, processor = [], []
    for i in range(PASSES):
        indices = np.arange(i * n, (i + 1) * n)
        started, used = time.perf_counter(), time.process_time()
        render(indices, size=size)
        clock.append((time.perf_counter() - started) / n)
        processor.append((time.process_time() - used) / n)
    return {
        "images": n * PASSES,
        "best": round(1 / min(clock)),
        "median": round(1 / float(np.median(clock))),
        "best_by_processor_time": round(1 / min(processor)),
        "median_by_processor_time": round(1 / float(np.median(processor))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "world_speed.json")
    flags = parser.parse_args()
    figures = {}
    with threadpool_limits(1):
        for size in flags.sizes:
            figures[str(size)] = measure(size)
            print(f"{size} px: {figures[str(size)]}", flush=True)
    rows = [at_least("scenes of the world at 64 px, one core", "images/s", figures["64"]["best"], AT_LEAST)]
    show(rows)
    result = {
        "protocol": f"image, label, mask and depth; one thread; images a second over {PASSES} passes",
        "images_per_second": figures,
        "world_version": VERSION,
        "rows": rows,
    }
    write(flags.out, {**result, **provenance()})


if __name__ == "__main__":
    main()
