"""What crops of one photograph teach: each stage of encoders that saw one image, or many, or none; CIFAR-10.

    python benchmarks/single_image.py [--photo PHOTO.jpg] [--samples 10000] [--probe-samples 10000]

Asano, Rupprecht, Vedaldi, "A critical analysis of self-supervision, or what we can learn from a single image", ICLR
2020, arXiv 1904.13132: the first layers learn from one photograph and strong augmentation what they learn from a
million images, the deeper ones do not. Here rotation and SimCLR train the same encoder, once on crops of the photograph
(``--data single:``) and once on as many images of CIFAR-10, for as many updates; a random encoder, its batch norm
calibrated on CIFAR-10, stands beside them. All are scored by ``layerwise``, a linear probe behind each stage, from the
same labelled images, a keyed part of the training set, on all test images. A run that has ended is not trained again:
a call that was stopped goes on.

Trainings take 7 minutes each of one core, probes 2 to 4.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from _bench import HERE, flags, provenance, write
from selfsight.data.cache import cache_folder
from selfsight.engine.run import OpenRun, open_run
from selfsight.evaluation.baselines import random_encoder
from selfsight.evaluation.layerwise import layerwise
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import Subject, crop_of, labelled, open_pair, open_subject
from selfsight.pretraining import pretrain

METHODS: dict[str, dict[str, Any]] = {
    "rotation": {"epochs": 20, "batch_size": 128},
    "simclr": {"epochs": 32, "batch_size": 250, "optimiser": "adamw", "lr": 4e-3},
}
"""Settings of the ladder, for as long as seven minutes last."""
WHICH = ("single", "many")


def trained(method: str, which: str, given: argparse.Namespace) -> OpenRun:
    """A run of the method on crops of the photograph or on many images; one that has ended is taken as it is."""
    out = given.runs / f"{method}-{which}"
    if (out / "encoder.safetensors").exists():
        return open_run(out)
    how = {**METHODS[method], **({"epochs": given.epochs} if given.epochs else {})}
    how["batch_size"] = min(how["batch_size"], given.samples)
    print(f"{method} on {'crops of one photograph' if which == 'single' else 'many images'}", flush=True)
    return pretrain(
        method,
        data=f"single:{given.photo}" if which == "single" else given.data,
        backbone=given.backbone,
        image_size=32,
        limit=given.samples,
        out=out,
        device=given.device,
        threads=given.threads,
        workers=0,
        probe_every=0,
        report=False,
        resume=(out / "checkpoints" / "last.pt").exists(),
        overwrite=(out / "run.yaml").exists() and not (out / "checkpoints" / "last.pt").exists(),
        **how,
    )


def by_stage(subject: Subject, given: argparse.Namespace, *, random: bool = False) -> dict[str, float]:
    """The test accuracy behind each stage, from the input on; ``random`` is the same encoder untrained."""
    pair = open_pair(subject, given.data, limit=given.probe_samples, labels=None, seed=0)
    data = labelled(pair, "layerwise")
    place = Place(device=given.device, cache_dir=cache_folder())
    encoder = random_encoder(subject.encoder, pair[0], subject.plain, place=place) if random else subject.encoder
    lesson = Lesson(
        train=data.train,
        test=data.test,
        crop=crop_of(subject.plain),
        plain=subject.plain,
        classes=data.classes,
        epochs=given.probe_epochs,
        place=place,
    )
    found, _ = layerwise(encoder, lesson)
    return {stage: round(score.top1, 4) for stage, score in found.items()}


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each encoder."""
    rows: list[dict[str, Any]] = []
    for method in given.methods:
        for which in WHICH:
            began = time.process_time()
            run = trained(method, which, given)
            minutes = (time.process_time() - began) / 60
            subject = open_subject(run)
            if not rows:
                rows.append({"method": None, "images": "none: random", "stages": by_stage(subject, given, random=True)})
            row = {
                "method": method,
                "images": "crops of one photograph" if which == "single" else "many",
                "samples": run.settings["data"]["samples"],
                "epochs": run.settings["resolved"]["epochs"],
                "training_cpu_minutes": round(minutes, 2) if minutes > 0.05 else None,
                "stages": by_stage(subject, given),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def share_of_the_way(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of what many images gain over the random encoder behind each stage, the share that one photograph gains.

    None where many images gain less than a point: there is nothing to have a share of.
    """
    random = rows[0]["stages"]
    shares: dict[str, dict[str, float | None]] = {}
    for one, many in zip(rows[1::2], rows[2::2], strict=True):
        gained = {stage: many["stages"][stage] - start for stage, start in random.items()}
        shares[one["method"]] = {
            stage: round((one["stages"][stage] - random[stage]) / gain, 3) if gain >= 0.01 else None
            for stage, gain in gained.items()
        }
    return shares


def show(rows: list[dict[str, Any]]) -> None:
    """The table, a column for each stage."""
    stages = list(rows[0]["stages"])
    print(f"{'':<36}" + "".join(f"{stage:>12}" for stage in stages))
    for row in rows:
        name = f"{row['method'] or ''} {row['images']}".strip()
        print(f"{name:<36}" + "".join(f"{row['stages'][stage]:>12.1%}" for stage in stages))


def main() -> None:
    """Trains what is not trained yet, measures all of it, and writes results/single_image.json."""
    store = Path(os.environ.get("SELFSIGHT_DATA", "../shared/data"))
    parser = flags(__doc__, "single_image")
    parser.add_argument("--photo", type=Path, default=store / "single-image" / "ameyoko.jpg")
    parser.add_argument("--data", default=str(store / "cifar10"), help="the many images, and those of the probes")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--backbone", default="tiny_cnn")
    parser.add_argument("--samples", type=int, default=10_000, help="images of a training, of both kinds")
    parser.add_argument("--epochs", type=int, help="of every training; by default seven minutes' worth of each")
    parser.add_argument("--probe-samples", type=int, default=10_000, help="labelled images, and test images at most")
    parser.add_argument("--probe-epochs", type=int, default=12, help="36 in the paper; the schedule shrinks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/single_image"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = measured(given)
    show(rows)
    out = given.out or HERE / "results" / "single_image.json"
    settings = {
        "photo": given.photo.name,
        "data": Path(given.data).name,
        "encoder": given.backbone,
        "threads": given.threads,
        "probe": {"protocol": "layerwise", "samples": given.probe_samples, "epochs": given.probe_epochs},
        "methods": {method: METHODS[method] for method in given.methods},
    }
    write(
        out,
        {"settings": settings, "rows": rows, "share_of_the_way": share_of_the_way(rows), **provenance(given.device)},
    )


if __name__ == "__main__":
    main()
