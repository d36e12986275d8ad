"""Sources made of sources: chosen positions, other labels, several in a row; and the keyed limit and division."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from selfsight.data.cache import digest
from selfsight.data.protocol import DataError, Source, Unreadable
from selfsight.keyed import permutation, subset

TEST_SHARE = 0.2
LEAST_CLASS = 5
"""Images of a class below which none is held back."""


class Chosen:
    """The images of ``parent`` at ``positions``, in that order."""

    def __init__(self, parent: Source, positions: Int[np.ndarray, " n"], *, name: str) -> None:
        self.parent, self.positions, self.name = parent, positions, name
        self.labels: np.ndarray | None = None if parent.labels is None else parent.labels[positions]
        self.classes, self.native, self.channels = parent.classes, parent.native, channels_of(parent)
        self.fingerprint = digest(parent.fingerprint, np.ascontiguousarray(positions, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        return self.parent.read(int(self.positions[position]))

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        return self.parent.read_many(self.positions[positions])

    def where(self, position: int) -> str:
        return self.parent.where(int(self.positions[position]))


class Relabelled:
    """The images of ``parent`` with other labels."""

    def __init__(self, parent: Source, labels: Int[np.ndarray, " n"], classes: tuple[str, ...]) -> None:
        self.labels: np.ndarray | None = labels
        self.parent, self.classes, self.name = parent, classes, parent.name
        self.native, self.channels = parent.native, channels_of(parent)
        self.fingerprint = digest(parent.fingerprint, labels, *classes)

    def __len__(self) -> int:
        return len(self.parent)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        return self.parent.read(position)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        return self.parent.read_many(positions)

    def where(self, position: int) -> str:
        return self.parent.where(position)


class Joined:
    """The images of several sources, one source after the other; all have the same classes."""

    def __init__(self, parts: Sequence[Source], *, name: str) -> None:
        self.parts, self.name, self.classes = list(parts), name, parts[0].classes
        self._ends = np.cumsum([len(part) for part in parts])
        known = [np.full(len(part), -1) if part.labels is None else part.labels for part in parts]
        self.labels: np.ndarray | None = (
            np.concatenate(known) if any(part.labels is not None for part in parts) else None
        )
        self.native = parts[0].native if len({part.native for part in parts}) == 1 else None
        self.channels = channels_of(parts[0])
        self.fingerprint = digest(*(part.fingerprint for part in parts))
        self.cache_key = digest(*(getattr(part, "cache_key", part.fingerprint) for part in parts))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _part(self, position: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self.parts[number], position - int(self._ends[number - 1] if number else 0)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        part, within = self._part(position)
        return part.read(within)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        number = np.searchsorted(self._ends, positions, side="right")
        starts = np.concatenate([[0], self._ends])
        images: list[Any] = [None] * len(positions)
        for k, part in enumerate(self.parts):
            rows = np.flatnonzero(number == k)
            for row, image in zip(rows, part.read_many(positions[rows] - starts[k]) if len(rows) else [], strict=True):
                images[row] = image
        return images

    def where(self, position: int) -> str:
        part, within = self._part(position)
        return f"{part.name}: {part.where(within)}"


def channels_of(source: Source) -> int:
    """How many channels the images of ``source`` have."""
    return source.native[0] if source.native is not None else getattr(source, "channels", 3)


def origin(source: Source, positions: np.ndarray | None = None) -> tuple[Source, np.ndarray | None]:
    """The source that ``source`` takes its images from, and where in it they are (None: the same positions)."""
    while isinstance(source, (Chosen, Relabelled)):
        if isinstance(source, Chosen):
            positions = source.positions if positions is None else source.positions[positions]
        source = source.parent
    return source, positions


def limited(source: Source, limit: int | None, *, seed: int) -> Source:
    """At most ``limit`` images of ``source``, a keyed random choice, in ascending order."""
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no image; give 1 or more")
    if limit is None or limit >= len(source):
        return source
    return Chosen(source, subset(len(source), limit, seed=seed), name=source.name)


def with_labels(source: Source) -> Source:
    """The images of ``source`` whose label is known."""
    known = np.flatnonzero(source.labels >= 0) if source.labels is not None else np.zeros(0, dtype=np.int64)
    return source if len(known) == len(source) else Chosen(source, known, name=source.name)


def divided(source: Source) -> tuple[Source, Source]:
    """Train and test, 80/20 within each class of at least five by key; all other images are for training.

    So folders of one or two images each, which sort by patient and not by class, lose none; their test is empty.

    The key is fixed: no seed may move an image that one run was trained on into the test of another. Without labels
    there is nothing to hold back: train is all images, test a keyed fifth of them.
    """
    order = permutation(len(source), seed=0, epoch=0, stream="split")
    labels = source.labels
    if labels is None or not (labels >= 0).any():
        held = order[: max(1, round(len(source) * TEST_SHARE))]
        return source, Chosen(source, np.sort(held), name=source.name)
    within = order[np.argsort(labels[order], kind="stable")]  # by class, in keyed order within each
    known = within[labels[within] >= 0]
    counts = np.bincount(labels[known], minlength=int(labels.max()) + 1)
    rank = np.arange(len(known)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = np.where(counts >= LEAST_CLASS, np.rint(counts * TEST_SHARE), 0)
    test = known[rank < share[labels[known]]]
    keep = np.ones(len(source), dtype=np.bool_)
    keep[test] = False
    return Chosen(source, np.flatnonzero(keep), name=source.name), Chosen(source, np.sort(test), name=source.name)


def same_classes(train: Source, test: Source) -> Source:
    """``test`` with its labels numbered as in ``train``; a class that ``train`` doesn't know becomes -1."""
    if test.labels is None or not train.classes or train.classes == test.classes:
        return test
    number = {name: i for i, name in enumerate(train.classes)}
    table = np.array([*(number.get(name, -1) for name in test.classes), -1], dtype=np.int64)
    return Relabelled(test, table[test.labels], train.classes)


def in_a_row(parts: Sequence[Source]) -> Source:
    """The sources one after the other, as one, with the classes of the first."""
    first, *others = parts
    return Joined([first, *(same_classes(first, other) for other in others)], name=first.name) if others else first


def split_of(name: str) -> str | None:
    """Which split a file's, folder's or Hub split's name means: "train", "test", "validation" or None.

    >>> split_of("train-00000-of-00001"), split_of("val"), split_of("pretraining")
    ('train', 'validation', None)
    """
    for split, words in {
        "train": "train|training",
        "test": "test|testing",
        "validation": "val|valid|validation|dev",
    }.items():
        if re.search(rf"(?:^|[^a-z])(?:{words})(?:$|[^a-z])", name.lower()):
            return split
    return None
