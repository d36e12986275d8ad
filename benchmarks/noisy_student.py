"""Whether Noisy Student's students know more than their teacher: CIFAR-10, a tenth of 10,000 labels.

    python benchmarks/noisy_student.py [--data CIFAR] [--epochs 100] [--students 1]

Xie et al., "Self-training with Noisy Student improves ImageNet Classification", CVPR 2020, arXiv 1911.04252. Teacher
and students have the same network, noise and epochs over the same 1,000 labels, so that a student's only advantage is
its teacher's answers for the other 9,000 images. The same network trained without this noise stands beside them.
"""

import os
import time
from pathlib import Path

import torch

from _bench import HERE, flags, provenance, write
from selfsight.pipelines.noisy_student import noisy_student


def main() -> None:
    """Runs the pipeline, or goes on with it, and writes results/noisy_student.json."""
    parser = flags(__doc__, "noisy_student")
    parser.add_argument("--data", default=str(Path(os.environ.get("SELFSIGHT_DATA", "../shared/data")) / "cifar10"))
    parser.add_argument("--epochs", type=int, default=100, help="over the labelled images, for teacher and students")
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/noisy_student"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = {
        "limit": 10_000,
        "fraction": 0.1,
        "backbone": "tiny_cnn",
        "optimiser": "adamw",
        "magnitude": 3.0,
        "dropout": 0.1,
        "ratio": 4,
        "rounds": given.students,
        "teacher_epochs": given.epochs,
        "teacher_batch_size": 50,
        "student_epochs": given.epochs,
        "student_batch_size": 50,
        "seed": 0,
    }
    began = time.process_time()
    where = {"device": given.device, "threads": given.threads, "workers": 0, "precision": "32", "report": False}
    found = noisy_student(out=given.runs, data=given.data, say=print, **settings, **where)
    rows = {
        name: {"top1": stage["scores"]["top1"], **{who: each["top1"] for who, each in stage["baselines"].items()}}
        for name, stage in found["stages"].items()
    }
    about = {"data": Path(given.data).name, **settings, "threads": given.threads}
    minutes = round((time.process_time() - began) / 60, 2)
    write(
        given.out or HERE / "results" / "noisy_student.json",
        {"settings": about, "stages": rows, "cpu_minutes": minutes, **provenance(given.device)},
    )


if __name__ == "__main__":
    main()
