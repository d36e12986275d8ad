"""How hard the world is: shallow features must say little of the class, a small supervised network nearly all.

    python benchmarks/world_hardness.py [--sizes 32 64] [--out benchmarks/results/world_hardness.json]

At each size, 5,000 training and 1,000 test scenes: weighted kNN (k = 20, T = 0.07, cosine) on pixels, on colour
histograms, and on the features of a random ResNet-18 whose batch-norm statistics are calibrated on the data, each at
most 35 %; and a small supervised network, at least 95 %. About seven minutes of one core.
"""

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.data.world import CLASSES, VERSION, World
from selfsight.encoders.build import build_encoder
from selfsight.encoders.small import SmallCNN
from selfsight.engine.machine import cpu_name, has_bf16
from selfsight.evaluation.features import Features
from selfsight.evaluation.knn import knn_accuracy
from selfsight.parts.batchnorm import calibrate_

TRAIN, TEST, EPOCHS, BATCH = 5_000, 1_000, 24, 100
AT_MOST, AT_LEAST = 0.35, 0.95
BF16 = has_bf16(torch.device("cpu"))


def load(n: int, size: int, split: str) -> tuple[Tensor, Tensor]:
    scenes = World(n, size=size, split=split).scenes(np.arange(n))
    return torch.from_numpy(scenes.image), torch.from_numpy(scenes.label)


def normalised(images: Tensor) -> Tensor:
    return ((images.float() / 255 - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)


def histograms(images: Tensor) -> Tensor:
    """Joint histograms of colour, eight steps for each of red, green and blue."""
    step = (images // 32).long()
    cell = ((step[:, 0] * 8 + step[:, 1]) * 8 + step[:, 2]).flatten(1)
    return torch.zeros(len(images), 512).scatter_add_(1, cell, torch.ones(cell.shape))


def random_features(size: int, train: Tensor, *others: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=size).to(memory_format=torch.channels_last)
    calibrate_(encoder, (normalised(part) for part in train[:1000].split(BATCH)))
    encoder.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        return [torch.cat([encoder(normalised(part)).float() for part in x.split(BATCH)]) for x in (train, *others)]


def shifted(images: Tensor) -> Tensor:
    """The usual small-image augmentation: a flip, and a shift of up to an eighth by a padded crop."""
    size, pad = images.shape[-1], images.shape[-1] // 8
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    padded = nn.functional.pad(images, (pad,) * 4, mode="reflect")
    y, x = torch.randint(0, 2 * pad + 1, (2,)).tolist()
    return padded[:, :, y : y + size, x : x + size]


def supervised(size: int, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """The accuracy of a residual net of 0.3 million weights; at 64 px the pixels are first folded into channels."""
    torch.manual_seed(0)
    fold = size // 32
    net = nn.Sequential(nn.PixelUnshuffle(fold), SmallCNN(3 * fold**2, (32, 64, 128)), nn.Linear(128, len(CLASSES)))
    net = net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=EPOCHS * (TRAIN // BATCH))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(TRAIN).split(BATCH):
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                logits = net(normalised(shifted(train[0][chosen])))
            loss = cross_entropy(logits.float(), train[1][chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    net.eval()
    with torch.no_grad():
        guesses = torch.cat([net(normalised(part)).argmax(1) for part in test[0].split(BATCH)])
    return float((guesses == test[1]).float().mean())


def measure(size: int) -> dict[str, float]:
    train, test = load(TRAIN, size, "train"), load(TEST, size, "test")

    def knn(x: Tensor, y: Tensor) -> float:
        return knn_accuracy(
            Features(x, train[1], torch.arange(TRAIN)), Features(y, test[1], torch.arange(TEST)), k=20, temperature=0.07
        )

    return {
        "pixels": knn(train[0].flatten(1).float(), test[0].flatten(1).float()),
        "pixels_centred": knn(normalised(train[0]).flatten(1), normalised(test[0]).flatten(1)),
        "colour_histograms": knn(histograms(train[0]), histograms(test[0])),
        "random_resnet18": knn(*random_features(size, train[0], test[0])),
        "supervised": supervised(size, train, test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/world_hardness.json"))
    flags = parser.parse_args()
    started, figures = time.perf_counter(), {}
    for size in flags.sizes:
        figures[str(size)] = measure(size)
        print(
            f"{size} px: " + ", ".join(f"{name} {value:.1%}" for name, value in figures[str(size)].items()), flush=True
        )
    passed = all(
        value >= AT_LEAST if name == "supervised" else value <= AT_MOST
        for found in figures.values()
        for name, value in found.items()
    )
    result = {
        "protocol": f"{TRAIN} train and {TEST} test scenes; kNN k=20 T=0.07 cosine; supervised {EPOCHS} epochs",
        "bounds": {"shallow_at_most": AT_MOST, "supervised_at_least": AT_LEAST, "passed": passed},
        "accuracy": figures,
        "world_version": VERSION,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system(), "bf16": BF16},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "seconds": round(time.perf_counter() - started),
        "date": datetime.date.today().isoformat(),
    }
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(result, indent=2) + "\n")
    if not passed:
        raise SystemExit(f"the world is out of its bounds: at most {AT_MOST:.0%} shallow, at least {AT_LEAST:.0%} deep")


if __name__ == "__main__":
    main()
