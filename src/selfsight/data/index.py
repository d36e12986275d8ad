"""The index of a folder or a list of images: one memory-mapped file in the cache folder, trusted after a cheap check.

The check: the modification time of every directory that was walked (adding, removing and renaming files changes it), or
of the list file; and, up to ``CAREFUL`` images, every file's own size and time as well, which also finds what was
overwritten in place. So a warm start of a million images stats their directories and reads nothing else.

A directory changed so shortly before it was walked that its clock might not tell a later change is not trusted, and
walked again next time.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.cache import cache_folder, digest, write_beside

CAREFUL = 100_000
"""Up to so many images each file's size and time is known, and each header may be read."""

_FORMAT = 1
_KINDS = {
    "names": "u1",
    "starts": "<i8",
    "of": "<i4",
    "labels": "<i8",
    "times": "<i8",
    "sizes": "<i8",
    "changed": "<i8",
}
_COARSE, _FINE = (
    2_000_000_000,
    50_000_000,
)  # nanoseconds by which two times surely differ: whole-second clocks, the rest


@dataclass(frozen=True, kw_only=True)
class Walked:
    """What a walk or a list brought, before it is written.

    ``names`` are the file names, joined, with their ``lengths``; ``of`` is each file's directory among ``directories``
    (relative to ``root``); ``labels`` is empty where there are none; the modification ``times`` of the ``watched``
    paths tell whether all still holds.
    """

    root: str
    directories: list[str]
    of: np.ndarray
    names: bytes
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    watched: list[str]
    times: list[int]


class Index:
    """An index file, mapped; it pickles as its path.

    ``names`` are the file names, joined, each up to the next of ``starts``; ``of`` is each file's directory;
    ``sizes`` and ``changed`` are the files' own, empty beyond ``CAREFUL``; ``labels`` is empty where there are none.
    """

    names: np.ndarray
    starts: np.ndarray
    of: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    sizes: np.ndarray
    changed: np.ndarray

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(whole[:8].view("<i8")[0])
        header: dict[str, Any] = json.loads(whole[8 : 8 + length].tobytes())
        if header["format"] != _FORMAT:
            raise ValueError(f"index format {header['format']}")
        self.root: str = header["root"]
        self.classes: tuple[str, ...] = tuple(header["classes"])
        self.directories: list[str] = header["directories"]
        self.watched: list[str] = header["watched"]
        self.fingerprint: str = header["fingerprint"]
        self.cache_key: str = header["cache_key"]
        start = _aligned(8 + length)
        for name, kind in _KINDS.items():
            size = header["bytes"][name]
            setattr(self, name, np.asarray(whole[start : start + size]).view(kind))
            start = _aligned(start + size)

    def __len__(self) -> int:
        return len(self.of)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.path,)

    def relative(self, position: int) -> str:
        """The path of one image from the folder, or as the list gives it."""
        name = os.fsdecode(self.names[self.starts[position] : self.starts[position + 1]].tobytes())
        return os.path.join(self.directories[self.of[position]], name)

    def full(self, position: int) -> str:
        """The path of one image."""
        return os.path.join(self.root, self.relative(position))

    def holds(self) -> bool:
        """Whether what was indexed is, by the cheap check, unchanged."""
        if [changed(path) for path in self.watched] != self.times.tolist():
            return False
        if len(self.sizes) == 0:
            return True
        sizes, times = _stats(self.full(i) for i in range(len(self)))
        return np.array_equal(sizes, self.sizes) and np.array_equal(times, self.changed)


def indexed(key: str, walk: Callable[[], Walked]) -> Index:
    """The index filed under ``key``, from the cache where it still holds, else from a new ``walk``."""
    path = cache_folder("index") / f"{key}.idx"
    try:
        index = Index(path)
        if index.holds():
            return index
    except (OSError, ValueError, KeyError):  # none yet, cut short by hand, or another version's
        pass
    _write(path, walk())
    return Index(path)


def changed(path: str) -> int:
    """The modification time of ``path`` in nanoseconds, -1 where there is nothing."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


def settled(times: Sequence[int], began: int) -> list[int]:
    """``times``, but 0, which never holds, where a change after ``began`` might carry the same time."""
    return [t if t + (_COARSE if t % 1_000_000 == 0 else _FINE) < began else 0 for t in times]


def _write(path: Path, walked: Walked) -> None:
    starts = np.concatenate([[0], np.cumsum(walked.lengths)]).astype(np.int64)
    sizes = times = np.zeros(0, dtype=np.int64)
    if len(walked.of) <= CAREFUL:
        ends = zip(starts[:-1].tolist(), starts[1:].tolist(), walked.of.tolist(), strict=True)
        folders = [os.path.join(walked.root, d) for d in walked.directories]
        sizes, times = _stats(os.path.join(folders[d], os.fsdecode(walked.names[a:b])) for a, b, d in ends)
    arrays = {
        "names": np.frombuffer(walked.names, np.uint8),
        "starts": starts,
        "of": walked.of,
        "labels": walked.labels,
        "times": np.asarray(walked.times, dtype=np.int64),
        "sizes": sizes,
        "changed": times,
    }
    arrays = {name: np.ascontiguousarray(arrays[name], dtype=kind) for name, kind in _KINDS.items()}
    held = [arrays[name] for name in ("of", "names", "starts", "labels", "sizes")]
    fingerprint = digest("\0".join(walked.directories), *held)
    header = {
        "format": _FORMAT,
        "root": walked.root,
        "classes": walked.classes,
        "directories": walked.directories,
        "watched": walked.watched,
        "fingerprint": fingerprint,
        # what was decoded of these files: files of the same names elsewhere, or newer ones, may look otherwise
        "cache_key": digest(os.path.realpath(walked.root), fingerprint, arrays["changed" if len(sizes) else "times"]),
        "bytes": {name: array.nbytes for name, array in arrays.items()},
    }
    write_beside(path, _laid_out(json.dumps(header).encode(), list(arrays.values())))


def _laid_out(header: bytes, arrays: list[np.ndarray]) -> Iterator[bytes | memoryview]:
    length = 8 + len(header)
    yield len(header).to_bytes(8, "little")
    yield header
    for array in arrays:
        yield bytes(_aligned(length) - length)
        yield array.data
        length = _aligned(length) + array.nbytes
    yield bytes(_aligned(length) - length)


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64


def _stats(paths: Iterator[str]) -> tuple[np.ndarray, np.ndarray]:
    sizes, times = [], []
    for path in paths:
        try:
            stat = os.stat(path)
            sizes.append(stat.st_size)
            times.append(stat.st_mtime_ns)
        except (OSError, ValueError):  # a listed file that isn't there, a dangling link, a name that none can have:
            # told when it is read
            sizes.append(-1)
            times.append(-1)
    return np.asarray(sizes, dtype=np.int64), np.asarray(times, dtype=np.int64)
