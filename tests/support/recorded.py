"""What the methods' official code computed: its values, the inputs and the small networks that it was run with.

The values stand in ``tests/golden/*.json``, each case with the repository, commit, file and function it came from. They
were computed in float64, on inputs that are normal numbers of numpy's generator rounded to float32, so that anyone can
draw them again.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.batches import MultiCrop, TwoViews
from selfsight.method import Clock, Method, Objective, Schedule, drive

FOLDER = Path(__file__).parents[1] / "golden"


def recorded(family: str) -> dict[str, dict[str, Any]]:
    """The cases of one file."""
    return json.loads((FOLDER / f"{family}.json").read_text())


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).double()


@torch.no_grad()
def fill_(parameters: Iterable[Tensor], seed: int) -> None:
    """Halves of normal numbers, drawn for one parameter after the other."""
    generator = np.random.default_rng(seed)
    for p in parameters:
        p.copy_(torch.from_numpy(0.5 * generator.standard_normal(tuple(p.shape)).astype(np.float32)))


def two_views(seed: int, b: int = 8) -> TwoViews:
    return TwoViews(drawn(seed, b, 6, 1, 1), drawn(seed + 1, b, 6, 1, 1), torch.arange(b))


def crops(seed: int, b: int = 4) -> MultiCrop:
    """Two large crops and two small ones."""
    x = [drawn(seed + i, b, 6, s, s) for i, s in enumerate((2, 2, 1, 1))]
    return MultiCrop((x[0], x[1]), (x[2], x[3]), torch.arange(b))


class Pooled(nn.Module):
    """An encoder of images of any size: the mean over places, a linear layer, the hyperbolic tangent."""

    width, stride = 5, 1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def dense(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean(dim=(2, 3))).tanh()


class Given(nn.Module):
    """An encoder that hands on images of one pixel as they are."""

    stride = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def dense(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def descend(
    method: Method[Any], batches: Sequence[Any], rate: float | Schedule, *, steps: int, epochs: int, start: int = 0
) -> list[float]:
    """Plain gradient descent from step ``start`` on; returns the losses."""
    losses: list[float] = []
    for step, batch in enumerate(batches, start):
        clock = Clock(step=step, steps=steps, epoch=step * epochs // steps, epochs=epochs)
        lr = rate(clock) if callable(rate) else rate

        def update(objective: Objective, lr: float = lr) -> bool:
            losses.append(float(objective.loss.detach()))
            free = [p for _, p in method.trainables()["main"] if not any(p is held for held in objective.hold)]
            with torch.no_grad():
                for p, g in zip(free, torch.autograd.grad(objective.loss, free), strict=True):
                    p.sub_(lr * g)
            return True

        drive(method.step(batch, clock), update)
    return losses


def flat(*modules: nn.Module) -> Tensor:
    """All parameters, one after the other."""
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def same(ours: Tensor | Sequence[float] | float, theirs: Any, rtol: float = 1e-9) -> None:
    """Equal but for rounding: the official code and ours both computed in float64."""
    ours = torch.as_tensor(ours, dtype=torch.float64).detach()
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=rtol, atol=rtol / 10)
