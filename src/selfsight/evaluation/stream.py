"""Augmented batches with their labels, for the protocols that train: keyed like pretraining, sharded over processes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight import distributed
from selfsight.batches import Images
from selfsight.data.loader import Loader
from selfsight.data.protocol import Source
from selfsight.method import Clock
from selfsight.views.protocol import Views

Progress = Callable[[Clock, float], None]
"""Told the clock and the loss after each update."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how images become tensors; nothing here changes a result but by rounding."""

    device: str | torch.device = "cpu"
    workers: int = 0
    cache_dir: Path | None = None


class Labelled(NamedTuple):
    """One process's part of an update's batch."""

    x: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    clock: Clock


def labelled_batches(
    source: Source, views: Views[Images], *, epochs: int, batch_size: int, seed: int, place: Place
) -> Iterator[Labelled]:
    """Every update's batch over ``epochs`` keyed permutations of ``source``, all of whose labels are known."""
    labels = torch.from_numpy(np.asarray(source.labels, dtype=np.int64)).to(place.device)
    loader = Loader(
        source,
        views,
        batch_size=batch_size,
        seed=seed,
        rank=distributed.rank(),
        world=distributed.world_size(),
        workers=place.workers,
        cache_dir=place.cache_dir,
    )
    steps = epochs * loader.steps_per_epoch
    try:
        for micro in loader.stream(0, steps):
            batch = views.render(moved(micro.images, place.device), views.plan(micro.key), micro.key)
            epoch = micro.step // loader.steps_per_epoch
            clock = Clock(step=micro.step, steps=steps, epoch=epoch, epochs=epochs)
            yield Labelled(batch.x, labels[micro.key.index.to(place.device)], clock)
    finally:
        loader.close()


@overload
def moved(images: Tensor, device: str | torch.device) -> Tensor: ...
@overload
def moved(images: list[Tensor], device: str | torch.device) -> list[Tensor]: ...
def moved(images: Tensor | list[Tensor], device: str | torch.device) -> Tensor | list[Tensor]:
    """Whole images, or the stacks that a worker cut, on ``device``."""
    return [x.to(device) for x in images] if isinstance(images, list) else images.to(device)


def whole_batch(wanted: int, samples: int) -> int:
    """The batch of an update: ``wanted``, or less where there are fewer samples; the processes divide it evenly."""
    world = distributed.world_size()
    return max(min(wanted, samples) // world, 1) * world


def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """The mean of each gradient over the processes."""
    if distributed.world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = distributed.mean(parameter.grad)


@torch.no_grad()
def average_buffers_(module: nn.Module) -> None:
    """The mean of each floating-point buffer over the processes: batch norm may have counted each one's part only."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(distributed.mean(buffer))
