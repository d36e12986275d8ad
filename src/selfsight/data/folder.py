"""A folder of images, walked recursively: the source of image files.

Labels come from the parent folder, by its path from the root, where at least two folders hold images; images right in
the root then have none. Hidden files and folders (``.name``) and files of other types are passed over; links are
followed.
"""

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from selfsight.data.cache import digest
from selfsight.data.decoding import EXTENSIONS, decode, probe
from selfsight.data.index import Index, Walked, indexed, settled
from selfsight.data.protocol import DataError, Unreadable, one_by_one
from selfsight.data.survey import survey

_SUFFIXES = frozenset(os.fsencode(e) for e in EXTENSIONS)


class Files:
    """Image files by position, as an index lists them; ``channels`` None takes what most of the files have."""

    def __init__(self, index: Index, *, name: str, channels: int | None = None) -> None:
        self.index, self.name, self.classes = index, name, index.classes
        self.labels: np.ndarray | None = index.labels if len(index.labels) else None
        self.fingerprint, self.cache_key = index.fingerprint, index.cache_key
        found = survey(lambda i: probe(index.full(i)), len(index), name=name, where=self.where, key=self.cache_key)
        self.native, self.channels = found.as_channels(channels)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """Decodes one file. Raises ``Unreadable``."""
        return decode(self.index.full(position), channels=self.channels)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """Decodes several files, one after the other."""
        return one_by_one(self.read, positions)

    def where(self, position: int) -> str:
        """The file's path from the folder, or as the list gives it."""
        return printable(self.index.relative(position))


def printable(name: str) -> str:
    """A path as text: a name may be no UTF-8, a message must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def open_folder(root: Path, *, channels: int | None = None) -> Files:
    """The images under ``root``. Raises ``DataError`` where there are none, or none that can be read."""
    top = os.path.abspath(root)
    return Files(indexed(digest(top, "folder"), lambda: walk(top)), name=os.path.basename(top), channels=channels)


def walk(root: str) -> Walked:
    """Finds the images under ``root``: directories depth first, names in byte order within each."""
    began = time.time_ns()
    directories, times, blobs, counts, lengths = [], [], [], [], []
    stack, seen = [b""], set()
    while stack:
        relative = stack.pop()
        path = os.path.join(os.fsencode(root), relative)
        stat, names, below = _listed(path)
        if (stat.st_dev, stat.st_ino) in seen:  # a link back to where we have been
            continue
        seen.add((stat.st_dev, stat.st_ino))
        directories.append(os.fsdecode(relative))
        times.append(stat.st_mtime_ns)
        blobs.append(b"".join(names))
        counts.append(len(names))
        lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
        stack += [os.path.join(relative, name) for name in reversed(below)]
    if sum(counts) == 0:
        raise DataError(f"no images in {root}; looked for {', '.join(sorted(EXTENSIONS))} in all its folders")
    labels, classes = _parents(directories, counts)
    return Walked(
        root=root,
        directories=directories,
        of=np.repeat(np.arange(len(counts)), counts),
        names=b"".join(blobs),
        lengths=np.concatenate(lengths),
        labels=labels,
        classes=classes,
        watched=[os.path.join(root, d) for d in directories],
        times=settled(times, began),
    )


def _listed(path: bytes) -> tuple[os.stat_result, list[bytes], list[bytes]]:
    """A directory's stat, taken before it is read, its images and its directories, sorted."""
    try:
        stat, names, below = os.stat(path), [], []
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if is_folder(entry):
                    below.append(name)
                elif name[name.rfind(b".") :].lower() in _SUFFIXES:
                    names.append(name)
    except OSError as error:
        raise DataError(f"cannot list {os.fsdecode(path)} ({error.strerror}); make it readable or move it") from None
    return stat, sorted(names), sorted(below)


def is_folder(entry: os.DirEntry[Any]) -> bool:
    """Whether an entry is a folder or leads to one."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # links in a circle lead nowhere; one with an image's name is named when it is read


def _parents(directories: list[str], counts: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    classes = tuple(sorted(d for d, count in zip(directories, counts, strict=True) if d and count))
    if len(classes) < 2:
        return np.zeros(0, dtype=np.int64), ()
    number = {name: i for i, name in enumerate(classes)}
    return np.repeat([number.get(d, -1) for d in directories], counts), classes
