"""One training in a folder: the first process holds a lock on it for as long as it trains.

The system gives the lock back when the process ends, however it ends. Where there are no such locks (Windows, some
network disks) nothing is held and nothing refused.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfsight.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: set[int] = set()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else trains in ``folder``, made if missing, until the end; a ``UserError`` where somebody does.

    The folder itself is locked, so that no file for it stays behind.
    """
    handle = -1
    with suppress(OSError):  # what is wrong with the folder is for those to say who write there
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        _held.add(handle)
    try:
        if fcntl is not None and handle >= 0:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _give_back(handle)
        raise UserError(
            f"another training is at work in {folder}; wait for its end or end it, or choose another --out"
        ) from None
    except OSError:  # a disk without locks
        pass
    try:
        yield
    finally:
        _give_back(handle)


def _give_back(handle: int) -> None:
    if handle in _held:
        _held.remove(handle)
        os.close(handle)


def _not_in_a_fork() -> None:
    """A worker that outlives a killed training for some seconds must not hold its folder."""
    for handle in [*_held]:
        _give_back(handle)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_not_in_a_fork)
