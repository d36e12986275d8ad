"""SimCLR with ResNet-18 (3x3 stem) at 32 px, batch 128: images a second of whole training loops.

    python benchmarks/step.py [--device cuda]

The bare step is forward, backward and optimiser of the same method on views that lie ready; our loop adds loader,
views, monitors and journal (written ten times as often as by default). lightly's is the loop of its CIFAR example: its
transform without blur in a DataLoader with 0 or 2 workers, its projection head and loss, SGD, float32. Each is measured
at its default precision and at the other's. A rate is the median over rounds that take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from _bench import flags, row, save, turns
from _loops import Stage, bare_step, our_loop
from selfsight.data.opening import open_data
from selfsight.data.world import render
from selfsight.engine.machine import open_machine
from selfsight.flags import Flags

SIZE, BATCH = 32, 128


def stage(device: str, precision: str, steps: int) -> Stage:
    run = Flags(
        data=f"world:{BATCH}", image_size=SIZE, backbone="resnet18", batch_size=BATCH, epochs=1,
        device=device, precision=precision,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return Stage(name="simclr", flags=run, steps=steps, skip=2, native=(3, SIZE, SIZE), log_every=2)


class Faces(Dataset[Any]):
    def __init__(self, images: Tensor) -> None:
        self.faces = [Image.fromarray(np.ascontiguousarray(x.permute(1, 2, 0).numpy())) for x in images]
        self.transform = SimCLRTransform(input_size=SIZE, gaussian_blur=0.0)
        self.length = len(self.faces)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.faces[i % len(self.faces)])


class Lightly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        net = torchvision.models.resnet18()
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        self.backbone = nn.Sequential(*list(net.children())[:-1])
        self.head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).flatten(1))


def with_lightly(device: str, precision: str, steps: int, images: Tensor, workers: int) -> Callable[[], float]:
    model, loss = Lightly().to(device), NTXentLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.06)
    faces = Faces(images)
    faces.length = steps * BATCH  # workers stay, and make nothing ahead of a turn
    loader = DataLoader(faces, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)

    def measure() -> float:
        began = time.perf_counter()
        for x0, x1 in loader:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(model(x0.to(device)), model(x1.to(device)))
            value.backward()
            optimiser.step()
            optimiser.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return BATCH * steps / (time.perf_counter() - began)

    return measure


def main() -> None:
    """Measures the loops in turns."""
    parser = flags(__doc__, "step")
    parser.add_argument("--steps", type=int, default=7, help="updates a turn; on a GPU a hundred make sense")
    given: argparse.Namespace = parser.parse_args()
    device, n, images = given.device, given.steps, torch.from_numpy(render(np.arange(BATCH), size=SIZE).image)
    default, fewer = open_machine(stage(device, "auto", n).flags).precision, max(n // 2, 6)
    whole = stage(device, default, n)
    source = open_data(torch.utils.data.TensorDataset(images.repeat(n, 1, 1, 1)))
    measures = {"bare step": bare_step(whole, source), "ours": our_loop(whole, source)}
    measures |= {f"lightly, {w} workers": with_lightly(device, "32", fewer, images, w) for w in (0, 2)}
    if default != "32":
        part = open_data(torch.utils.data.TensorDataset(images.repeat(fewer, 1, 1, 1)))
        measures["ours, float32"] = our_loop(stage(device, "32", fewer), part)
        measures["lightly, bf16"] = with_lightly(device, default, fewer, images, 0)
    rates = turns(measures, rounds=min(given.rounds, 3), warm=False)  # the median is of warm ones
    best = max((name for name in rates if "workers" in name), key=lambda name: statistics.median(rates[name]))
    share = 0.9 if device == "cuda" else 0.95
    place = "a GPU" if device == "cuda" else f"{torch.get_num_threads()} threads"
    what = f"SimCLR ResNet-18, 32 px, batch {BATCH}, {place}"
    rows = [
        row(f"{what}, {default}", "images/s", rates["ours"], "the bare step", rates["bare step"], target=share),
        row(f"{what}, defaults", "images/s", rates["ours"], best, rates[best], target=2.5),
    ]
    if default != "32":
        same = [("float32", "ours, float32", best), (default, "ours", "lightly, bf16")]
        rows += [row(f"{what}, {p}", "images/s", rates[a], b, rates[b], target=1.0) for p, a, b in same]
    save("step", given, rows, rates=rates)


if __name__ == "__main__":
    main()
