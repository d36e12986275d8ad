"""Small stand-ins for the tests of methods: an encoder, a batch of two views, and one step in a plain loop."""

import torch
from torch import Tensor, nn

from selfsight.batches import TwoViews
from selfsight.method import Clock, Method, Objective, drive


class SmallEncoder(nn.Module):
    """An encoder with a convolution and a batch norm."""

    width, stride = 6, 1

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()

    def dense(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).mean(dim=(2, 3))


def two_views(b: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> TwoViews:
    """Views that share an image and differ by noise."""
    generator = torch.Generator().manual_seed(seed)
    image, first, second = (torch.randn(b, 3, 6, 6, generator=generator).to(dtype) for _ in range(3))
    return TwoViews(image + 0.3 * first, image + 0.3 * second, torch.arange(b))


def clock(step: int = 0, steps: int = 100) -> Clock:
    return Clock(step=step, steps=steps, epoch=step // 10, epochs=steps // 10)


def take_step(
    method: Method[TwoViews], batch: TwoViews, at: Clock | None = None, *, lr: float = 0.1, moves: bool = True
) -> Objective:
    """One step by plain gradient descent (none when it does not move); returns its only objective."""
    seen: list[Objective] = []
    parameters = [p for _, p in method.trainables()["main"]]

    def update(objective: Objective) -> bool:
        seen.append(objective)
        method.zero_grad()
        objective.loss.backward()
        if moves:
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p.sub_(lr * p.grad)
        return moves

    drive(method.step(batch, at or clock()), update)
    (objective,) = seen
    return objective
