"""The cache folder, and in it the decoded cache: small images as uint8 in one memory-mapped file, filled as first read.

The file holds a 32-bit stamp for each image, then the images. A stamp is 0 or the checksum of its row, and is written
after the row. So whatever kills a process or a machine, and in whatever order pages reach the disk, a half-written row
is never taken for an image: its checksum doesn't match and it is decoded again. Processes share the file; two that
fill one row write the same bytes. Rows are written with ``pwrite``, never through the map, because a full disk then is
an error to handle and not a crash.
"""

import hashlib
import os
import platform
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from selfsight.data.protocol import DataError, Source, Unreadable
from selfsight.sizes import SMALL
from selfsight.writing import is_another

_PAGE = 4096


def cache_folder(*parts: str) -> Path:
    """The cache folder ``$SELFSIGHT_CACHE`` (else ``~/.cache/selfsight``), or a folder in it, made if missing."""
    top = Path(os.environ.get("SELFSIGHT_CACHE") or "~/.cache/selfsight").expanduser()
    try:
        top.joinpath(*parts).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to the cache folder {top} ({error.strerror}); set SELFSIGHT_CACHE") from None
    return top.joinpath(*parts)


def digest(*parts: bytes | str | np.ndarray) -> str:
    """A short hash of all parts, sixteen hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else bytes(part)
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:16]


_begun: set[str] = set()


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new file to write, renamed to ``path`` at the end: ``path`` is the old or the new one, never a part.

    What dead processes of this machine left of the same file is deleted: machines may share the cache folder.
    """
    whose = f".{digest(path.name)}.{digest(platform.node())}."
    for left in path.parent.glob(f"{whose}*"):
        process = left.name.removeprefix(whose).split(".")[0]
        if process.isdecimal() and not is_another(int(process)) and str(left) not in _begun:
            with suppress(OSError):
                left.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{whose}{os.getpid()}.")
    os.close(handle)
    _begun.add(name)
    try:
        yield Path(name)
        os.replace(name, path)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}); free space or set SELFSIGHT_CACHE") from None
    finally:
        Path(name).unlink(missing_ok=True)
        _begun.discard(name)


def write_beside(path: Path, chunks: Iterable[Any]) -> None:
    """Writes ``chunks`` of bytes as the file ``path``, all of it or nothing."""
    with beside(path) as new, new.open("wb") as file:
        file.writelines(chunks)


def is_small(source: Source) -> bool:
    """Whether ``source`` goes through the decoded cache: one native size, at most ``SMALL`` pixels a side."""
    return source.native is not None and max(source.native[1:]) <= SMALL


class DecodedCache:
    """The decoded images of a small source: ``read_many`` like the source's, from the file where it has the row.

    ``cache_key`` of the source (its ``fingerprint`` where it has none) names the file, in ``decoded`` of ``folder``, by
    default the cache folder.
    """

    def __init__(self, source: Source, folder: Path | None = None) -> None:
        assert source.native is not None
        self.source, self.shape = source, source.native
        key = re.sub(r"[^\w.-]", "_", getattr(source, "cache_key", source.fingerprint))
        name = f"{key}-{len(source)}x{'x'.join(map(str, self.shape))}.u8"
        self.path = (cache_folder() if folder is None else folder) / "decoded" / name
        self._row = int(np.prod(self.shape))
        self._start = -(-len(source) * 4 // _PAGE) * _PAGE
        self._sound = np.zeros(len(source), dtype=np.bool_)  # rows this process has compared with their stamps
        self._writable = True
        self._open()

    def _open(self) -> None:
        size = self._start + len(self.source) * self._row
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            if os.fstat(self._file).st_size != size:  # new: a hole of the whole size, which stamps nothing
                os.ftruncate(self._file, size)
        except OSError as error:
            raise DataError(f"cannot write the cache {self.path} ({error.strerror}); set SELFSIGHT_CACHE") from None
        whole = np.memmap(self.path, dtype=np.uint8, mode="r")
        self._stamps = whole[: len(self.source) * 4].view("<u4")
        self._rows = whole[self._start :].reshape(len(self.source), *self.shape)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """The images at ``positions``; those not yet in the file are decoded and written."""
        block = self._rows[positions]
        stamps = self._stamps[positions]
        for i in np.flatnonzero((stamps != 0) & ~self._sound[positions]):
            self._sound[positions[i]] = _stamp(block[i]) == stamps[i]
        images: list[Any] = list(block)
        missing = np.flatnonzero((stamps == 0) | ~self._sound[positions])
        if len(missing):
            for i, image in zip(missing, self.source.read_many(positions[missing]), strict=True):
                images[i] = self._keep(int(positions[i]), image)
        return images

    def _keep(self, position: int, image: np.ndarray | Unreadable) -> np.ndarray | Unreadable:
        if isinstance(image, Unreadable):
            return image
        if image.shape != self.shape:
            return Unreadable(f"is {_size(image.shape)} where all were {_size(self.shape)}; has the file been changed?")
        image = np.ascontiguousarray(image)
        try:
            if self._writable:
                os.pwrite(self._file, image.data, self._start + position * self._row)
                os.pwrite(self._file, _stamp(image).to_bytes(4, "little"), position * 4)
        except OSError:  # a full disk: every image is still there, it is only decoded each time
            self._writable = False
        return image

    def close(self) -> None:
        """Gives the file back; what was read stays valid."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()


def _stamp(row: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(row).data) or 1


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
