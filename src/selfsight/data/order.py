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

    def __call__(self, n: int, *, seed: int, round: int) -> Int[np.ndarray, " m"]:
        """The positions that round number ``round`` shows."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Each round all images, in an order of its own."""

    def length(self, n: int) -> int:
        return n

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

    def __call__(self, n: int, *, seed: int, round: int) -> Int[np.ndarray, " m"]:
        size = self.length(n)
        lap, place = divmod(round, -(-n // self.stride))
        within = (place * self.stride + permutation(size, seed=seed, epoch=round)) % n
        return _lap(n, seed, lap)[within]


@lru_cache(maxsize=2)
def _lap(n: int, seed: int, lap: int) -> Int[np.ndarray, " n"]:
    """The array that the window slides over; a million images take a while to shuffle, so it is kept for the lap."""
    return permutation(n, seed=seed, epoch=lap, stream="lap")
