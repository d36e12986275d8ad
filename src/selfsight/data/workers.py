"""Worker processes that decode large images and cut the planned boxes of their views.

Work goes out in chunks of a few images, whichever batch they belong to: batches come in order, start soon, and what is
under way is bounded by the number of workers and not by the batch size. A chunk carries its positions and epoch, so
workers hold no state.
"""

import atexit
import gc
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfsight.data.protocol import DataError, Source
from selfsight.data.reading import Skip, read_all, read_readable
from selfsight.keyed import Key
from selfsight.views.protocol import Views

CHUNK = 16
_AHEAD = 4  # chunks under way in each worker


_REMEDY = "memory or shared memory (/dev/shm, in Docker --shm-size) may be short: use fewer --workers, or 0"


class Chunk(NamedTuple):
    """What one worker does next: these positions, of this epoch."""

    positions: np.ndarray
    epoch: int


class Cutout(NamedTuple):
    """What came of a chunk: a stack ``b v c s s`` for each crop size, where the images came from, what was skipped."""

    stacks: list[Tensor]
    positions: np.ndarray
    skips: list[Skip]


class Cutting(Dataset[Cutout]):
    """Chunks to cutouts. ``substitute`` replaces what cannot be read; without it such images are left out."""

    def __init__(self, source: Source, views: Views[Any], *, seed: int, substitute: bool) -> None:
        self.source, self.views, self.seed, self.substitute = source, views, seed, substitute

    def __getitem__(self, chunk: Chunk) -> Cutout | DataError:
        positions, epoch = chunk
        try:
            if self.substitute:
                n = len(self.source)
                read = read_all(self.source.read_many, positions, n=n, seed=self.seed, epoch=epoch)
            else:
                read = read_readable(self.source.read_many, positions)
        except DataError as error:  # as a value: raised, it would reach the user as the worker's traceback
            return error
        if len(read.images) == 0:
            return Cutout([], read.positions, read.skips)
        plan = self.views.plan(key_of(self.seed, epoch, read.positions))
        stacks = self.views.cut([torch.from_numpy(image) for image in read.images], plan)
        return Cutout(stacks, read.positions, read.skips)


def key_of(seed: int, epoch: int, positions: np.ndarray) -> Key:
    """The key of a batch of one epoch."""
    return Key(seed, torch.full((len(positions),), epoch), torch.from_numpy(positions.astype(np.int64)))


class Queue:
    """The chunks of the next sweep: a DataLoader keeps its sampler as long as its workers."""

    def __init__(self) -> None:
        self.chunks: Iterable[Chunk] = ()

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)


class Workers:
    """Persistent workers (or none: then the caller's process does it) that turn chunks into cutouts, in order."""

    def __init__(self, cutting: Cutting, *, workers: int) -> None:
        if workers < 0:
            raise DataError(f"--workers is {workers}; it must be at least 0")
        self.cutting, self.workers = cutting, workers
        self._queue = Queue()
        self._loader: DataLoader[Any] | None = None
        self._running: Any = None

    def cutouts(self, chunks: Iterable[Chunk]) -> Iterator[Cutout]:
        """Does ``chunks``; one such sweep at a time. Raises ``DataError`` where no image can be read."""
        cutouts = self._start(chunks) if self.workers else map(self.cutting.__getitem__, chunks)
        try:
            for cutout in cutouts:
                if isinstance(cutout, DataError):
                    raise cutout
                yield cutout
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(f"a loading process died ({_first_line(error)}); {_REMEDY}") from error

    def _start(self, chunks: Iterable[Chunk]) -> Iterator[Cutout | DataError]:
        self._queue.chunks = chunks
        with warnings.catch_warnings():
            # the number of workers is the user's choice; that forking a process with threads is delicate is known:
            # these children run NumPy, Pillow and single-threaded tensor code, and never touch the device
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            if self._loader is None:
                self._loader = DataLoader(
                    self.cutting,
                    batch_size=None,
                    sampler=self._queue,
                    num_workers=self.workers,
                    collate_fn=_as_it_is,
                    worker_init_fn=_begin_worker,
                    multiprocessing_context="fork" if sys.platform == "linux" else None,
                    generator=torch.Generator(),  # its own: the global one belongs to the training step
                    prefetch_factor=_AHEAD,
                    persistent_workers=True,
                )
                self._running = iter(self._loader)  # persistent: the same object for every sweep
                # before multiprocessing's own exit, which would wait for workers that nobody told to stop
                atexit.register(_close, weakref.ref(self))
                return self._running
            return iter(self._loader)

    def close(self) -> None:
        """Ends the workers."""
        if self._running is not None:
            # what the iterator does when it is deleted; but a traceback may keep it alive
            self._running._shutdown_workers()
        self._running = self._loader = None


def _close(workers: "weakref.ref[Workers]") -> None:
    if (alive := workers()) is not None:
        alive.close()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def _as_it_is(item: Any) -> Any:
    return item


def _begin_worker(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the main one saves and then ends its workers itself.

    A second SIGTERM is meant for the worker: it ends one that hangs. Its garbage collector leaves alone what the parent
    had: each page that it touches would become a copy.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def default_workers(world: int = 1) -> int:
    """One worker for each processor that this process may use beyond its own, at most 16; shared among local ranks."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return max(0, min(16, usable // max(local, 1) - 1))


def joined(cutouts: Sequence[Cutout]) -> list[Tensor]:
    """The stacks of several chunks as those of one batch."""
    if len(cutouts) == 1:
        return cutouts[0].stacks
    return [torch.cat(parts) for parts in zip(*(cutout.stacks for cutout in cutouts), strict=True)]
