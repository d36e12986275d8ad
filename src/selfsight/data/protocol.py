"""What a source of images is, and what can go wrong with one image."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


class Unreadable(Exception):
    """One image cannot be read; the message says why. It is skipped, counted and named, and never stops a run."""


class DataError(ValueError):
    """The data as a whole cannot be used; one line with value and remedy."""


class NoneReadable(DataError):
    """Not one of the images that were asked for can be read."""


@runtime_checkable
class Source(Protocol):
    """Images by position. Implementations are picklable (workers get a copy) and hold no image in memory."""

    name: str
    labels: np.ndarray | None
    """int64, -1 where unknown; None where the source has no labels."""
    classes: tuple[str, ...]
    """Names of the labels, empty where unknown."""
    native: tuple[int, int, int] | None
    """(channels, height, width) where all images are known to have one native size, else None."""
    fingerprint: str
    """A short hash of what the source holds: names, sizes, labels (not pixels)."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """Decodes one image. Raises ``Unreadable``."""
        ...

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """Decodes several; vectorised where the source can (the world)."""
        ...

    def where(self, position: int) -> str:
        """The image's path or name, for messages and tables."""
        ...


def one_by_one(read: Callable[[int], np.ndarray], positions: np.ndarray) -> list[np.ndarray | Unreadable]:
    """``read_many`` of the sources that can do no better than ``read`` in turn."""
    images: list[np.ndarray | Unreadable] = []
    for position in positions.tolist():
        try:
            images.append(read(position))
        except Unreadable as error:
            images.append(error)
    return images
