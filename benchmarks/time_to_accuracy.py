"""How long until weighted kNN (k=20, T=0.07) on CIFAR-10's 10,000 test images passes 50 %: ours and lightly's example.

    python benchmarks/time_to_accuracy.py ours [--epochs 12]
    python benchmarks/time_to_accuracy.py lightly [--minutes 12] [--stem 3x3]
    python benchmarks/time_to_accuracy.py compare

Ours is `selfsight pretrain simclr --backbone tiny_cnn --optimiser adamw --batch-size 250 --lr 4e-3` on the 50,000
training images, scored after each epoch; lightly's is the loop of its SimCLR example for CIFAR-10 (ResNet-18, SGD at
0.06, batch 256, its transform without blur) with as many workers as cores, scored every few minutes, with the stem for
small images (its benchmark's) or the ImageNet stem (its example's). The bank is the whole training set; the clock
stands while scores are taken. "compare" measures nothing: it sets the two curves side by side, and where the peer gave
up before it passed the target, its time is the least that it takes. On a GPU: ``ours --device cuda --backbone resnet18
--target 0.85``.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _bench import HERE, flags, provenance, row, show, write
from selfsight.data.cache import cache_folder
from selfsight.data.loader import Loader
from selfsight.data.opening import open_splits
from selfsight.data.protocol import Source
from selfsight.data.reading import whole_images
from selfsight.engine.loop import Execution, train
from selfsight.engine.machine import open_machine
from selfsight.evaluation.features import Features, extract
from selfsight.evaluation.knn import knn_accuracy
from selfsight.flags import Flags
from selfsight.pretraining import settle
from selfsight.recipes.assembly import assemble
from selfsight.views.view import IMAGENET

Curve = list[dict[str, float]]


class Watch:
    """A clock that stands while scores are taken, and the scores it has seen."""

    def __init__(self, target: float, minutes: float) -> None:
        self.target, self.limit, self.curve = target, 60 * minutes, Curve()
        self.spent, self.began = 0.0, time.perf_counter()

    def stop(self) -> None:
        self.spent += time.perf_counter() - self.began

    def go_on(self, images: int, score: float) -> None:
        self.curve.append({"minutes": round(self.spent / 60, 3), "images": images, "knn": round(score, 4)})
        print(self.curve[-1], flush=True)
        self.began = time.perf_counter()

    def seconds(self) -> float:
        return self.spent + time.perf_counter() - self.began

    def passed(self) -> float | None:
        """Minutes until the first score that reached the target."""
        return next((point["minutes"] for point in self.curve if point["knn"] >= self.target), None)


def ours(given: argparse.Namespace, pair: tuple[Source, Source], watch: Watch) -> dict[str, Any]:
    flags_ = Flags(
        data=given.data, backbone=given.backbone, optimiser=given.optimiser, batch_size=given.batch, lr=given.lr,
        epochs=given.epochs, device=given.device, workers=0,
    )  # fmt: skip
    source, test = pair
    made, machine = assemble("simclr", flags_, {}, samples=len(source), native=source.native), open_machine(flags_)
    settle(made, machine)
    loader = Loader(
        source, made.recipe.views, batch_size=given.batch, seed=0, cache_dir=cache_folder(),
        pin=given.device == "cuda",
    )  # fmt: skip
    seen = iter(range(1, 10**6))
    place = {"device": machine.device, "cache_dir": cache_folder()}

    def probe() -> float:
        watch.stop()
        score = knn_accuracy(
            *(extract(made.encoder, part, made.recipe.views.plain, **place) for part in (source, test))
        )
        watch.go_on(next(seen) * loader.steps_per_epoch * given.batch, score)
        return score

    read = whole_images(source, cache_folder())
    for first in range(0, len(source), 1000):  # decoded before the clock runs, as for the peer
        read(np.arange(first, min(first + 1000, len(source))))
    watch.began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        how = Execution(folder=Path(folder), quiet=True, probe_every=1, max_seconds=watch.limit)
        train(made.recipe, loader, machine, how, probe)
    return {"precision": machine.precision, **made.resolved}


def with_lightly(given: argparse.Namespace, pair: tuple[Source, Source], watch: Watch) -> dict[str, Any]:
    import torchvision  # noqa: PLC0415
    from lightly.loss import NTXentLoss  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415
    from torch.utils.data import DataLoader  # noqa: PLC0415

    from step import Faces, Lightly  # noqa: PLC0415

    source, test = pair
    model = Lightly().to(given.device)
    if given.stem == "7x7":
        net = torchvision.models.resnet18()
        model.backbone = nn.Sequential(*list(net.children())[:-1]).to(given.device)
    whole = torch.stack([torch.from_numpy(source.read(i)) for i in range(len(source))])
    faces = Faces(whole)
    faces.length = len(whole)
    loader = DataLoader(
        faces, batch_size=256, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1, persistent_workers=True
    )
    loss, optimiser = NTXentLoss(), torch.optim.SGD(model.parameters(), lr=0.06)
    images, due = 0, 60 * given.every
    watch.began = time.perf_counter()
    for x0, x1 in _forever(loader):
        value = loss(model(x0.to(given.device)), model(x1.to(given.device)))
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        images += len(x0)
        if watch.seconds() < due and watch.seconds() < watch.limit:
            continue
        watch.stop()
        model.eval()
        watch.go_on(images, knn_accuracy(*(_features(model.backbone, part, given.device) for part in (source, test))))
        model.train()
        due += 60 * given.every
        if watch.passed() is not None or watch.spent >= watch.limit:
            break
    return {"stem": given.stem, "workers": loader.num_workers, "batch_size": 256}


def _forever(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


@torch.inference_mode()
def _features(backbone: torch.nn.Module, source: Source, device: str) -> Features:
    """The peer's features, in bfloat16: in float32 60,000 images take this network longer than the training."""
    assert source.labels is not None
    rows = []
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in IMAGENET)
    for a in range(0, len(source), 500):
        images = torch.stack([torch.from_numpy(source.read(i)) for i in range(a, min(a + 500, len(source)))])
        with torch.autocast(device, torch.bfloat16):
            out = backbone((images.to(device).float() / 255 - mean) / std)
        rows.append(out.flatten(1).float().cpu())
    return Features(torch.cat(rows), torch.from_numpy(source.labels), torch.arange(len(source)))


def compare(device: str) -> dict[str, Any]:
    """The line of the table, from the two curves in results/; draws them."""
    tail = "" if device == "cpu" else f"_{device}"
    mine, peer = (
        json.loads((HERE / "results" / f"time_to_accuracy_{who}{tail}.json").read_text(encoding="utf-8"))
        for who in ("ours", "lightly")
    )
    ours, theirs = (result["minutes_to_target"] for result in (mine, peer))
    if mine["machine"] != peer["machine"] or mine["target"] != peer["target"]:
        raise SystemExit("the two curves are of different machines or targets; measure both on one")
    if ours is None:
        raise SystemExit(f"ours never passed {mine['target']:.0%}")
    against = "lightly" if theirs else f"lightly, at {peer['curve'][-1]['knn']:.1%} when stopped"
    spent = theirs or peer["curve"][-1]["minutes"]
    what = f"CIFAR-10: kNN passes {mine['target']:.0%}, {mine['threads']} threads"
    rows = [row(what, "minutes", [ours], against, [spent], target=6.0, less=True)]
    show(rows)
    plot({"selfsight": mine["curve"], "lightly": peer["curve"]}, mine["target"], f"time_to_accuracy{tail}.png")
    return {"rows": rows, **{key: mine[key] for key in ("machine", "versions", "date")}}


def plot(curves: dict[str, Curve], target: float, file: str) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        minutes, scores = [point["minutes"] for point in curve], [100 * point["knn"] for point in curve]
        axes.plot(minutes, scores, marker="o", markersize=3, label=name)
    axes.axhline(100 * target, color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="minutes of training", ylabel="kNN accuracy on CIFAR-10's test set, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(HERE.parent / "docs" / "images" / file, dpi=110)


def main() -> None:
    """Runs one of the two and writes its curve, or sets both side by side."""
    parser = flags(__doc__, "time_to_accuracy_WHO")
    parser.add_argument("who", choices=("ours", "lightly", "compare"))
    parser.add_argument("--data", default=str(Path(os.environ.get("SELFSIGHT_DATA", "../shared/data")) / "cifar10"))
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--minutes", type=float, default=12.0, help="give up after so many")
    parser.add_argument("--every", type=float, default=6.0, help="lightly: minutes between two scores")
    parser.add_argument("--stem", choices=("3x3", "7x7"), default="3x3")
    parser.add_argument("--backbone", default="tiny_cnn")
    parser.add_argument("--optimiser", default="adamw")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    device = "" if given.device == "cpu" else f"_{given.device}"
    if given.who == "compare":
        write(given.out or HERE / "results" / f"time_to_accuracy{device}.json", compare(given.device))
        return
    torch.manual_seed(0)
    watch = Watch(given.target, given.minutes)
    pair = open_splits(given.data, image_size=32)
    settings = (ours if given.who == "ours" else with_lightly)(given, pair, watch)
    result = {
        "target": given.target,
        "minutes_to_target": watch.passed(),
        "curve": watch.curve,
        "settings": settings,
        "threads": torch.get_num_threads(),
    }
    who = given.who if given.who == "ours" or given.stem == "3x3" else "lightly_7x7"
    write(
        given.out or HERE / "results" / f"time_to_accuracy_{who}{device}.json", {**result, **provenance(given.device)}
    )


if __name__ == "__main__":
    main()
