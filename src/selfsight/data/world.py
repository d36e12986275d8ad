"""The embedded world: procedural scenes, a pure function of (seed, index), at any size, with nothing to download.

A scene shows one or two objects of one of ten classes, turned, scaled and placed at random, each with its own colour
and texture, lit from one side, with a shadow, before a patterned and noisy background, among strokes that belong to no
class, seen by a noisy sensor. It comes with its label, the objects' mask and the depth of each pixel.

The class is what two crops of a scene share most reliably, as in photographs of one thing: colours are muted, textures
weak and backgrounds of few kinds, since two crops share these too, and a method that compares views would learn them
instead. Pixels, colours and random features say little of it. ``benchmarks/world_hardness.py`` measures both.
"""

import hashlib
import operator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt8

from selfsight.data.protocol import DataError, Unreadable
from selfsight.data.world_scene import NUMBERS, OBJECTS, scene
from selfsight.data.world_shapes import DISTANCES
from selfsight.keyed import words

CLASSES: tuple[str, ...] = tuple(DISTANCES)
VERSION = 2
"""Counts changes of what the scenes look like; caches of decoded images go by it."""

_TEST = 1 << 31  # training scenes are numbered below, test scenes from here
_SMALLEST = 8
_BLOCK = 1 << 20  # labels drawn together
_PIXELS = 1 << 17  # of scenes rendered together: few enough for the cache, enough that the calls cost little


class Scenes(NamedTuple):
    """Rendered scenes. Depth is the distance from the camera: objects from 0.3 to 0.6, the background about 0.9."""

    image: UInt8[np.ndarray, "b 3 s s"]
    label: Int64[np.ndarray, " b"]
    mask: Bool[np.ndarray, "b s s"]
    depth: Float32[np.ndarray, "b s s"]


def labels(indices: Int[np.ndarray, " b"], *, seed: int = 0) -> Int64[np.ndarray, " b"]:
    """The scenes' classes, as positions in ``CLASSES``, without rendering them.

    >>> [CLASSES[label] for label in labels(np.arange(3))]
    ['comb', 'ring', 'crescent']
    """
    return _kinds(indices, seed)[0]


def render(indices: Int[np.ndarray, " b"], *, size: int, seed: int = 0) -> Scenes:
    """Renders scenes by their number, from 0 to 2^32 - 1. A scene is the same whichever others are rendered with it.

    A scene shows the same at every ``size``, but for its sensor noise, which belongs to the pixels.

    >>> scenes = render(np.array([7, 2**31]), size=32)
    >>> scenes.image.shape, scenes.mask.shape
    ((2, 3, 32, 32), (2, 32, 32))
    """
    if size < _SMALLEST:
        raise DataError(f"the world is rendered at {_SMALLEST} pixels or more, not {size}")
    if len(indices) and not (indices.min() >= 0 and indices.max() < 2 * _TEST):
        raise DataError(f"scenes are numbered 0 to 2^32 - 1, not {indices.min()} to {indices.max()}")
    indices = indices.astype(np.int64)
    label, count = _kinds(indices, seed)
    n = len(indices)
    image, mask = np.empty((n, 3, size, size), dtype=np.uint8), np.empty((n, size, size), dtype=np.bool_)
    depth = np.empty((n, size, size), dtype=np.float32)
    order = np.lexsort((label, -count))  # like beside like, so that a chunk needs few kinds of shape
    chunk = max(1, _PIXELS // size**2)
    for start in range(0, n, chunk):
        rows = order[start : start + chunk]
        drawn = words(seed, np.zeros_like(rows), indices[rows], "world scene", NUMBERS)
        uniforms = ((drawn >> np.uint64(8)) * 2.0**-24).astype(np.float32)
        image[rows], mask[rows], depth[rows] = scene(uniforms, label[rows], count[rows], size)
    return Scenes(image, label, mask, depth)


def _kinds(indices: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each scene's class and its number of objects."""
    drawn = words(seed, np.zeros_like(indices), indices, "world kind", 2).astype(np.int64)
    return drawn[:, 0] % len(CLASSES), 1 + drawn[:, 1] % OBJECTS


class World:
    """The world as a ``Source`` of ``n`` labelled images; training and test scenes never overlap.

    >>> source = World(100, size=32, split="test")
    >>> source.native, source.where(17), source.read(17).shape
    ((3, 32, 32), 'world:test/17', (3, 32, 32))
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, n: int, *, size: int, split: str, seed: int = 0) -> None:
        if split not in ("train", "test"):
            raise DataError(f"the world has no split '{split}'; take 'train' or 'test'")
        if not 0 < n <= _TEST:
            raise DataError(f"the world has 1 to {_TEST} images a split, not {n}")
        if size < _SMALLEST:
            raise DataError(f"the world is rendered at {_SMALLEST} pixels or more, not {size}")
        self.name = "world"
        self.size, self.split, self.seed = size, split, seed
        self.native: tuple[int, int, int] | None = (3, size, size)
        self._n = n
        self._first = _TEST if split == "test" else 0
        starts = range(0, n, _BLOCK)  # a hundred million at once would take tens of gigabytes
        parts = [labels(self._first + np.arange(a, min(a + _BLOCK, n)), seed=seed) for a in starts]
        self.labels: np.ndarray | None = np.concatenate(parts)
        held = f"world {VERSION} {n} {size} {split} {seed} {' '.join(CLASSES)}"
        self.fingerprint = hashlib.sha256(held.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._n

    def scenes(self, positions: Int[np.ndarray, " b"]) -> Scenes:
        """Images with labels, masks and depths."""
        wrong = positions[(positions < 0) | (positions >= self._n)]
        if len(wrong):
            raise IndexError(f"position {wrong[0]} of {self._n} images")
        return render(self._first + positions.astype(np.int64), size=self.size, seed=self.seed)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """The image at ``position``."""
        return self.scenes(np.array([operator.index(position)])).image[0]

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """The images at ``positions``, rendered together."""
        return list(self.scenes(np.asarray(positions)).image)

    def where(self, position: int) -> str:
        return f"world:{self.split}/{position}"
