"""Orders of the data: which images a round shows, and in which order. Pure functions of a key, so any round is exact.

A round is what ends before the order is drawn anew: an epoch of shuffled data, a pass over a window of sliding ones. In
one round an image is shown once at most, so its views may be keyed by the round's number.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from selfsight.keyed import permutation


@runtime_checkable
class Order(Protocol):
    """The positions of each round."""

    def length(self, n: int) -> int:
        """How many of ``n`` images a round shows, the same in each."""
        ...

    def updates(self, n: int, batch_size: int) -> int:
        """How many updates make an epoch."""
        ...

    def __call__(self, n: int, *, seed: int, round: int) -> Int[np.ndarray, " m"]:
        """The positions that round number ``round`` shows."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Each round all images, in an order of its own."""

    def length(self, n: int) -> int:
        return n

    def updates(self, n: int, batch_size: int) -> int:
        return n // batch_size

    def __call__(self, n: int, *, seed: int, round: int) -> Int[np.ndarray, " m"]:
        return permutation(n, seed=seed, epoch=round)


SHUFFLED = Shuffled()
"""What a recipe has that does not ask for another order."""


@dataclass(frozen=True)
class SlidingWindow:
    """PIC's scheduler: each round a window of ``size`` images, shuffled, which then slides by ``stride`` of them.

    So an image is shown in ``size / stride`` rounds in a row, some ``size`` images apart, and then not for long (Cao et
    al., 2020, arXiv 2006.14618). The window slides over a shuffled array of all images and reads over its end into its
    beginning; when it has been all round, the array is shuffled anew. Where there are fewer images than ``size`` the
    window shows all of them.

    >>> order = SlidingWindow(4, 2)
    >>> first, second = (set(order(8, seed=0, round=r).tolist()) for r in range(2))
    >>> len(first), len(first & second)
    (4, 2)
    """

    size: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise ValueError(f"a window of {self.size} images cannot slide by {self.stride}; take 1 to {self.size}")

    def length(self, n: int) -> int:
        return min(self.size, n)

    def updates(self, n: int, batch_size: int) -> int:
        return n // batch_size

    def __call__(self, n: int, *, seed: int, round: int) -> Int[np.ndarray, " m"]:
        size = self.length(n)
        lap, place = divmod(round, -(-n // self.stride))
        within = (place * self.stride + permutation(size, seed=seed, epoch=round)) % n
        return _lap(n, seed, lap)[within]


@dataclass(frozen=True)
class Mixed:
    """Two kinds of images in every batch: for each of the first ``labelled`` ones ``ratio`` of the others.

    They stand in units of one and ``ratio``, so that a batch can be shared out in whole units. ``share`` of an update
    are labelled; an epoch is one of these. Both kinds are shuffled by themselves: of the more numerous one, relative to
    what an update takes, a permutation lasts for several rounds, and what does not fill a round waits for the next
    permutation (Xie et al., 2020, arXiv 1911.04252, has two streams, endless and independent).

    >>> sorted(Mixed(labelled=4, share=2, ratio=2)(12, seed=0, round=0).reshape(-1, 3)[:, 0].tolist())
    [0, 1, 2, 3]
    """

    labelled: int
    share: int
    ratio: int

    @property
    def unit(self) -> int:
        """Images that stay together."""
        return 1 + self.ratio

    def length(self, n: int) -> int:
        return self._updates(n) * self.share * self.unit

    def updates(self, n: int, batch_size: int) -> int:
        return self.labelled // self.share

    def _updates(self, n: int) -> int:
        """Those of a round: as many as the scarcer kind fills."""
        return min(self.labelled // self.share, (n - self.labelled) // (self.ratio * self.share))

    def __call__(self, n: int, *, seed: int, round: int) -> Int[np.ndarray, " m"]:
        taken = self._updates(n) * self.share
        first = _window(self.labelled, taken, seed, round, "labelled order")
        others = self.labelled + _window(n - self.labelled, self.ratio * taken, seed, round, "other order")
        return np.concatenate([first[:, None], others.reshape(-1, self.ratio)], axis=1).flatten()


def _window(n: int, size: int, seed: int, round: int, stream: str) -> Int[np.ndarray, " m"]:
    """The part of a permutation of ``n`` that a round shows, where each has as many rounds as ``size`` goes into it."""
    lap, place = divmod(round, n // size)
    return permutation(n, seed=seed, epoch=lap, stream=stream)[place * size : (place + 1) * size]


@lru_cache(maxsize=2)
def _lap(n: int, seed: int, lap: int) -> Int[np.ndarray, " n"]:
    """The array that the window slides over; a million images take a while to shuffle, so it is kept for the lap."""
    return permutation(n, seed=seed, epoch=lap, stream="lap")
