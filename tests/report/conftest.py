"""A run folder as the engine writes it, made up; images and views simple enough to know every pixel of."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from selfsight.batches import Images, TwoViews
from selfsight.data.protocol import Unreadable
from selfsight.keyed import uniforms

COLOURS = ((200, 60, 50), (60, 150, 70), (60, 90, 190), (210, 170, 60))


class Patches:
    """Images of one colour a class with a brighter square at a place of their own; position 5 cannot be read."""

    name = "patches"
    classes = ("red <b>", "green", "blue", "sand")
    native = (3, 32, 32)
    fingerprint = "0" * 16

    def __init__(self, n: int = 80, labelled: bool = True, unreadable: Iterable[int] = (5,)) -> None:
        self.n, self.unreadable = n, set(unreadable)
        self.labels = np.arange(n) % 4 if labelled else None

    def __len__(self) -> int:
        return self.n

    def read(self, position: int) -> np.ndarray:
        if position in self.unreadable:
            raise Unreadable("cut short")
        image = np.empty((3, 32, 32), np.uint8)
        image[:] = np.array(COLOURS[position % 4], np.uint8)[:, None, None]
        y, x = position * 7 % 20, position * 11 % 20
        image[:, y : y + 8, x : x + 8] += 40
        return image

    def read_many(self, positions: np.ndarray) -> list[Any]:
        out: list[Any] = []
        for position in positions:
            try:
                out.append(self.read(int(position)))
            except Unreadable as problem:
                out.append(problem)
        return out

    def where(self, position: int) -> str:
        return f"img_{position}.png"


class Plain:
    """(x / 255 - mean) / std, nothing else."""

    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)

    @property
    def plain(self) -> "Plain":
        return Plain()

    def plan(self, key: Any) -> Mapping[str, torch.Tensor]:
        return {"u": uniforms(key, "view", 1)}

    def cut(self, images: Sequence[torch.Tensor], plan: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [torch.stack([image[None, :, :32, :32] for image in images])]

    def stack(self, images: Any) -> torch.Tensor:
        return images if isinstance(images, torch.Tensor) else images[0][:, 0]

    def normalised(self, images: Any) -> torch.Tensor:
        return (self.stack(images).float() / 255 - self.mean) / self.std

    def render(self, images: Any, plan: Mapping[str, torch.Tensor], key: Any) -> Any:
        return Images(self.normalised(images), key.index)


class Mirrored(Plain):
    """Two views: the image, or its mirror image where the plan says so; and always its mirror image."""

    def render(self, images: Any, plan: Mapping[str, torch.Tensor], key: Any) -> Any:
        x = self.normalised(images)
        first = torch.where((plan["u"] < 0.5)[:, :, None, None], x.flip(-1), x)
        return TwoViews(first, x.flip(-1), key.index)


class Coarse(nn.Module):
    """A stand-in encoder: the image at four by four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) * self.scale


@pytest.fixture
def coarse() -> Coarse:
    return Coarse()


@pytest.fixture
def patches() -> Patches:
    return Patches()


@pytest.fixture
def mirrored() -> Mirrored:
    return Mirrored()


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


SETTINGS: dict[str, Any] = {
    "format": 1,
    "selfsight": "0.1.0",
    "method": "made_up",
    "flags": {"data": "patches", "backbone": "small_cnn", "seed": 3, "limit": None},
    "hyper": {"temperature": 0.2},
    "resolved": {
        "image_size": 32,
        "backbone": "small_cnn",
        "epochs": 20,
        "batch_size": 256,
        "optimisers": {
            "main": {"name": "LARS", "lr": "warm-up 10 epochs to 0.3, cosine", "weight_decay": "constant 1e-06"}
        },
    },
    "data": {"name": "patches", "samples": 5000, "fingerprint": "0" * 16},
    "versions": {"torch": "2.15.0"},
    "machine": {"device": "cpu (an imaginary one)", "processes": 1},
    "command": "selfsight pretrain made_up --data patches --temperature 0.2",
}


def metrics_row(step: int, steps: int) -> dict[str, Any]:
    """Curves of the usual shape: noise is a sine, so that every test sees the same."""
    done = step / steps
    read = step % 100 == 0
    return {
        "step": step,
        "epoch": int(done * 20),
        "loss": 5.5 - 2.4 * done**0.4 + 0.12 * math.sin(step * 1.7),
        "lr": 0.3 * min(done * 10, 0.5 * (1 + math.cos(math.pi * done))),
        "weight_decay": 1e-6,
        "grad_norm": 2 + math.sin(step) * 0.3 + 3 * math.exp(-done * 9),
        "feature_std": 0.03 + 0.05 * done if read else "",
        "effective_rank": 3 + 60 * done if read else "",
        "alignment": 1.1 - 0.8 * done if read else "",
        "uniformity": -0.4 - 3 * done if read else "",
        "teacher_entropy": "",
        "dead_prototypes": "",
        "knn": 0.2 + 0.4 * done**0.5 if step % 500 == 0 else "",
        "positive_similarity": 0.1 + 0.6 * done,
    }


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run, but for its weights."""
    run = tmp_path / "runs" / "made-up"
    (run / "evaluation").mkdir(parents=True)
    (run / "run.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    write_csv(run / "metrics.csv", [metrics_row(step, 4000) for step in range(0, 4001, 20)])
    shares = {"data_share": 0.24, "render_share": 0.15, "step_share": 0.58}
    timing = [
        {"step": s, "seconds": s * 0.05, "images_per_second": 1850 + 60 * math.sin(s), **shares}
        for s in range(0, 4001, 100)
    ]
    write_csv(run / "timings.csv", timing)
    alarm = {"step": 2400, "name": "data_wait", "value": 0.6, "cause": "training waits for images most of the time"}
    write_csv(run / "alarms.csv", [{**alarm, "advice": "raise --workers, or store the images smaller"}])
    unread = {"position": 5, "where": "a/<script>alert(1)</script>.jpg", "reason": "truncated after 12 kB"}
    write_csv(run / "skipped.csv", [unread, {"position": 9, "where": "b.png", "reason": "not an image"}])
    knn = {
        "protocol": "knn",
        "settings": {"k": 20, "temperature": 0.07, "feature": "pooled"},
        "scores": {"top1": 0.614, "top5": 0.93, "per_class": 0.611, "samples": 1000},
        "baselines": {
            "random": {"top1": 0.28, "top5": 0.7, "per_class": 0.27, "samples": 1000},
            "pixels": {"top1": 0.22, "top5": 0.66, "per_class": 0.21, "samples": 1000},
        },
    }
    (run / "evaluation" / "knn.json").write_text(json.dumps(knn))
    readings = {"trained": {"effective_rank": 63.2}, "random": {"effective_rank": 5.5}}
    quality = {"protocol": "quality", "settings": {"precision": "32"}, "quality": readings, "seed": 0}
    (run / "evaluation" / "quality.json").write_text(json.dumps(quality))
    return run
