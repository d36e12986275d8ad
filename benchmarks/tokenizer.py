"""What a tokenizer keeps of held-out images: its painting's error and the codes in use; writes results/tokenizer.json.

selfsight pretrain dvae --data CIFAR --image-size 32 --limit 10000 --out runs/dvae
python benchmarks/tokenizer.py runs/dvae --data CIFAR
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ladder import HERE
from selfsight.data.cache import cache_folder
from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.machine import cpu_name
from selfsight.engine.run import open_run, versions
from selfsight.evaluation.pretext import pretext
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import open_pair, open_subject


def main() -> None:
    """Reads the flags and measures one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tokenizer.json")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    run = open_run(flags.run)
    subject = open_subject(run)
    _, test = open_pair(subject, flags.data, limit=None, labels=None, seed=0)
    task = pretext(run, test, which="last", seed=0, place=Place(cache_dir=cache_folder()))
    some = np.stack([np.asarray(test.read(i), np.float32) / 255 for i in range(min(1000, len(test)))])
    method: Any = run.assembly.recipe.method
    about, images = run.settings["resolved"], task["settings"]["images"]
    row = {
        "encoder": subject.facts()["encoder"],
        "codes": method.head.codes,
        "updates": about["epochs"] * (run.settings["data"]["samples"] // about["batch_size"]),
        "variance": float(some.var(axis=(0, 2, 3)).mean()),
        "task": task,
    }
    result = {
        "methods": {run.method: row},
        "data": f"{test.name}: {images:,} images at {run.image_size} px",
        "seed": 0,
        "machine": {"processor": cpu_name(), "threads": flags.threads},
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    write_atomically(flags.out, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
