"""Batches: shuffled by key for training, in order for evaluation.

Small sources (one native size of at most 96 px) need no worker: their decoded images lie in one memory-mapped file, or
in an array, and a batch is whole images for the device to render. Of all others, workers hand over cuts.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from selfsight.batches import Images
from selfsight.data.cache import is_small
from selfsight.data.order import SHUFFLED, Order
from selfsight.data.protocol import NoneReadable, Source
from selfsight.data.reading import ReadMany, Skip, read_all, read_readable, whole_images
from selfsight.data.sampler import Sampler, shard
from selfsight.data.workers import CHUNK, Chunk, Cutting, Workers, default_workers, joined, key_of
from selfsight.keyed import Key
from selfsight.views.protocol import Views

OnSkip = Callable[[int, str, str], None]
"""Called once for each image that cannot be read: its position, where it is, why."""

Pixels = UInt8[Tensor, "b c h w"] | list[Shaped[Tensor, "b ..."]]
"""Whole images of one native size, or what a pipeline cut of others: a stack for each crop size."""


class Micro(NamedTuple):
    """One rank's part of a micro-batch: number ``micro`` of update ``step``."""

    images: Pixels
    key: Key
    step: int
    micro: int


class Loader:
    """The batches of a training run; ``batch_size`` counts samples per update over all ranks.

    ``on_skip`` hears of each unreadable image once; it may be set later. ``workers`` None takes one for each
    processor beyond this process's own. Raises ``DataError`` where ``batch_size`` doesn't fit.
    """

    def __init__(
        self,
        source: Source,
        views: Views[Any],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        workers: int | None = None,
        cache_dir: Path | None = None,
        pin: bool = False,
        on_skip: OnSkip | None = None,
        order: Order = SHUFFLED,
    ) -> None:
        self.source, self.views, self.seed, self.cache_dir, self.pin = source, views, seed, cache_dir, pin
        self.sampler = Sampler(
            len(source), batch_size=batch_size, seed=seed, rank=rank, world=world, accumulate=accumulate, order=order
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.on_skip = on_skip
        self._reported: set[int] = set()
        self._read = whole_images(source, cache_dir) if is_small(source) else None
        self.workers = 0 if self._read else default_workers(world) if workers is None else workers
        self._workers = Workers(Cutting(source, views, seed=seed, substitute=True), workers=self.workers)

    def stream(self, start: int, stop: int) -> Iterator[Micro]:
        """The micro-batches of updates ``start`` to ``stop - 1``: what came before ``start`` makes no difference."""
        return self._whole(self._read, start, stop) if self._read else self._cut(start, stop)

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()

    def _order(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        # in turn: itertools.product would first hold every number of the whole run
        return ((step, micro) for step in range(start, stop) for micro in range(self.sampler.accumulate))

    def _whole(self, read_many: ReadMany, start: int, stop: int) -> Iterator[Micro]:
        for step, micro in self._order(start, stop):
            positions, now = self.sampler.micro(step, micro)
            read = read_all(read_many, positions, n=len(self.source), seed=self.seed, epoch=now)
            self._report(read.skips)
            images = self._pin(torch.from_numpy(np.stack(read.images)))
            yield Micro(images, key_of(self.seed, now, read.positions), step, micro)

    def _cut(self, start: int, stop: int) -> Iterator[Micro]:
        chunks = (chunk for at in self._order(start, stop) for chunk in _chunks(*self.sampler.micro(*at)))
        cutouts = self._workers.cutouts(chunks)
        for step, micro in self._order(start, stop):
            parts = list(islice(cutouts, -(-self.sampler.share // CHUNK)))
            self._report([skip for part in parts for skip in part.skips])
            positions = np.concatenate([part.positions for part in parts])
            images = [self._pin(stack) for stack in joined(parts)]
            yield Micro(images, key_of(self.seed, self.sampler.round(step), positions), step, micro)

    def _pin(self, images: Tensor) -> Tensor:
        return images.pin_memory() if self.pin else images

    def _report(self, skips: list[Skip]) -> None:
        _report(self.source, skips, self._reported, self.on_skip)


def plain_batches(
    source: Source,
    plain: Views[Images],
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_dir: Path | None = None,
    on_skip: OnSkip | None = None,
) -> Iterator[tuple[Pixels, Key]]:
    """Every readable image once, in order: this rank's contiguous share (shares may differ by one).

    ``batch_size`` counts this rank's samples. Raises ``NoneReadable`` where no image can be read; of several ranks one
    whose share has none yields nothing, since only all together know whether that ends anything.
    """
    mine = shard(len(source), rank=rank, world=world)
    blocks = (np.arange(a, min(a + batch_size, mine.stop)) for a in range(mine.start, mine.stop, batch_size))
    small = is_small(source)
    parts = _whole_blocks(source, blocks, cache_dir) if small else _cut_blocks(source, plain, blocks, workers)
    reported: set[int] = set()
    reason, seen = "", 0
    for images, positions, skips in parts:
        _report(source, skips, reported, on_skip)
        reason = reason or next((why for _, why in skips), "")
        seen += len(positions)
        if len(positions):
            yield images, key_of(0, 0, positions)
    if len(mine) and not seen and world == 1:
        raise NoneReadable(
            f"none of {len(mine):,} images of {source.name} can be read; {source.where(mine[0])} {reason}"
        )


_Block = tuple[Pixels, np.ndarray, list[Skip]]


def _whole_blocks(source: Source, blocks: Iterable[np.ndarray], cache_dir: Path | None) -> Iterator[_Block]:
    read_many = whole_images(source, cache_dir)
    for block in blocks:
        read = read_readable(read_many, block)
        images = np.stack(read.images) if read.images else np.zeros((0, 1, 1, 1), np.uint8)
        yield torch.from_numpy(images), read.positions, read.skips


def _cut_blocks(source: Source, plain: Views[Images], blocks: Iterable[np.ndarray], workers: int) -> Iterator[_Block]:
    crew = Workers(Cutting(source, plain, seed=0, substitute=False), workers=workers)
    counts: deque[int] = deque()  # of chunks a block: workers are handed chunks before their block is asked for

    def chunks() -> Iterator[Chunk]:
        for block in blocks:
            counts.append(-(-len(block) // CHUNK))
            yield from _chunks(block, 0)

    cutouts = crew.cutouts(chunks())
    for first in cutouts:
        parts = [first, *islice(cutouts, counts.popleft() - 1)]
        kept = [part for part in parts if len(part.positions)]
        positions = np.concatenate([part.positions for part in parts])
        yield joined(kept) if kept else [], positions, [skip for part in parts for skip in part.skips]
    crew.close()


def _chunks(positions: np.ndarray, epoch: int) -> Iterator[Chunk]:
    return (Chunk(positions[a : a + CHUNK], epoch) for a in range(0, len(positions), CHUNK))


def _report(source: Source, skips: list[Skip], reported: set[int], on_skip: OnSkip | None) -> None:
    for position, reason in skips:
        if on_skip and position not in reported:
            reported.add(position)
            on_skip(position, source.where(position), reason)
