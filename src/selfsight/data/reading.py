"""Reading positions: small images through the decoded cache, and a keyed substitute for each that cannot be read."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from selfsight.data.cache import DecodedCache
from selfsight.data.protocol import DataError, Source, Unreadable
from selfsight.data.splits import origin
from selfsight.keyed import words

_TRIES = 8

ReadMany = Callable[[np.ndarray], list[np.ndarray | Unreadable]]
Skip = tuple[int, str]
"""A position that could not be read, and why."""


class Read(NamedTuple):
    """The images of a batch, where each really came from, and what could not be read."""

    images: list[UInt8[np.ndarray, "c h w"]]
    positions: Int[np.ndarray, " b"]
    skips: list[Skip]


def whole_images(source: Source, cache_dir: Path | None) -> ReadMany:
    """``read_many`` of a small source by way of the decoded cache, which all parts of one source share.

    A source that is ``resident`` has its images at hand and needs no cache.
    """
    root, at = origin(source)
    read = root.read_many if getattr(root, "resident", False) else DecodedCache(root, cache_dir).read_many
    return read if at is None else lambda positions: read(at[positions])


def read_readable(read_many: ReadMany, positions: Int[np.ndarray, " b"]) -> Read:
    """The readable images at ``positions``, in order."""
    images = read_many(positions)
    skips = [(int(p), str(image)) for p, image in zip(positions, images, strict=True) if isinstance(image, Unreadable)]
    rows = [i for i, image in enumerate(images) if not isinstance(image, Unreadable)]
    return Read([images[i] for i in rows], positions[rows], skips)  # pyright: ignore[reportArgumentType]


def read_all(read_many: ReadMany, positions: Int[np.ndarray, " b"], *, n: int, seed: int, epoch: int) -> Read:
    """The images at ``positions``; for each that cannot be read another of the ``n``, by (seed, epoch, position).

    The substitute comes with its own position, so what is drawn or remembered for it is its own; no other image
    moves. Where eight drawn substitutes fail, the positions after the last are tried in turn; where all fail,
    ``DataError``.
    """
    images, final, skips = list(read_many(positions)), positions.copy(), []
    for row in [i for i, image in enumerate(images) if isinstance(image, Unreadable)]:
        position, reason = int(positions[row]), images[row]
        skips.append((position, str(reason)))
        drawn = words(seed, np.array([epoch]), np.array([position]), "substitute", _TRIES)[0] % np.uint64(n)
        for candidate in chain(drawn.tolist(), ((int(drawn[-1]) + i) % n for i in range(1, n))):
            image = read_many(np.array([candidate]))[0]
            if not isinstance(image, Unreadable):
                images[row], final[row] = image, candidate
                break
            skips.append((candidate, str(image)))
        else:
            raise DataError(f"none of the {n:,} images can be read; the one at {position} {reason}")
    return Read(images, final, skips)  # pyright: ignore[reportArgumentType]
