"""Small stand-ins: images in an array, and an encoder that is quick to run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfsight.data.protocol import Source, Unreadable
from selfsight.engine.run import OpenRun
from selfsight.views.pipelines import PlainView, plain_view


class Pictures:
    """Images in memory whose class is the place of a bright square on noise; ``broken`` ones cannot be read."""

    def __init__(
        self, n: int, *, size: int = 16, classes: int = 4, seed: int = 0, broken: tuple[int, ...] = ()
    ) -> None:
        rng = np.random.default_rng(seed)
        self.labels: np.ndarray | None = rng.permutation(np.arange(n) % classes)
        self.images = rng.integers(0, 120, (n, 3, size, size), dtype=np.uint8)
        half = size // 2
        for image, label in zip(self.images, self.labels, strict=True):
            top, left = divmod(int(label) % 4, 2)
            image[label // 4 % 3, top * half : (top + 1) * half, left * half : (left + 1) * half] += 110
        self.name, self.native, self.broken = "pictures", (3, size, size), broken
        self.classes: tuple[str, ...] = tuple(f"class {c}" for c in range(classes))
        self.fingerprint = f"{n}-{size}-{classes}-{seed}-{broken}"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int) -> np.ndarray:
        if position in self.broken:
            raise Unreadable("cut short")
        return self.images[position]

    def read_many(self, positions: np.ndarray) -> list[np.ndarray | Unreadable]:
        return [Unreadable("cut short") if p in self.broken else self.images[p] for p in positions.tolist()]

    def where(self, position: int) -> str:
        return f"picture-{position}.png"


class TinyEncoder(nn.Module):
    """One convolution, batch norm and a pooled map of four cells."""

    def __init__(self, width: int = 8, *, image_size: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.width, self.stride, self.image_size = 4 * width, 4, image_size

    def dense(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(self.dense(x), 2).flatten(1)


class Classifier(nn.Module):
    """An encoder with a linear layer, as the methods with labels have it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TinyEncoder()
        self.classifier = nn.Linear(self.encoder.width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x))


class Teacher(OpenRun):
    """As much of a classifier's run as answers for pictures needs: two classes; by another ``scale``, another one."""

    path, classes = Path("teacher"), ("a", "b")

    def __init__(self, scale: float, plain: PlainView) -> None:
        torch.manual_seed(0)
        method = Classifier()
        with torch.no_grad():
            method.classifier.weight.mul_(scale)
        self.made = SimpleNamespace(method=method, views=SimpleNamespace(plain=plain))

    def recipe(self) -> Any:
        return self.made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small threads only wait for one another, and for whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures() -> Callable[..., Source]:
    """Makes a source of pictures."""
    return Pictures


@pytest.fixture
def encoder() -> TinyEncoder:
    """An encoder with weights by a fixed seed and batch norm that has seen something."""
    torch.manual_seed(0)
    made = TinyEncoder()
    made.norm.running_mean.normal_()  # pyright: ignore[reportOptionalMemberAccess]
    return made


@pytest.fixture
def teacher() -> Callable[[float], Teacher]:
    """Makes a teacher that answers for pictures."""
    return lambda scale: Teacher(scale, plain_view(16, None))
