"""What lies round a run: a listing before and after tells whether anything was written where it should not be."""

import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Listing = dict[str, tuple[int, int, int]]


def listing(top: Path, *, without: Collection[Path] = ()) -> Listing:
    """Mode, size and time of change of everything under ``top`` but what lies in ``without``; links as themselves."""
    found: Listing = {}
    left = {os.fspath(path) for path in without}
    for folder, below, files in os.walk(top):
        below[:] = [name for name in below if os.path.join(folder, name) not in left]
        for name in (*files, *below):
            path = os.path.join(folder, name)
            if path not in left:
                stat = os.lstat(path)
                size = (stat.st_size, stat.st_mtime_ns) if name in files else (0, 0)
                found[path] = (stat.st_mode, *size)
    return found


def changed(before: Listing, after: Listing) -> list[str]:
    """What is new, gone or other."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


_EVENTS = frozenset(
    """
    subprocess.Popen os.system os.exec os.posix_spawn os.startfile pty.spawn socket.connect socket.getaddrinfo
    socket.gethostbyname webbrowser.open
    """.split()
)
_watching: list[list[str]] = []
_hooked: list[bool] = []


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if event == "socket.connect" and given[0].family == getattr(socket, "AF_UNIX", None):
        return  # a process and its workers, which no network sees
    if _watching and (event in _EVENTS or (event == "pickle.find_class" and given[0] in ("os", "posix", "builtins"))):
        for seen in _watching:
            seen.append(f"{event} {given!r}"[:300])


@contextmanager
def started() -> Iterator[list[str]]:
    """What the interpreter does meanwhile that reading has no business with: programs, networks, foreign code."""
    if not _hooked:  # a hook stays for the life of the process
        sys.addaudithook(_hook)
        _hooked.append(True)
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching[:] = [other for other in _watching if other is not seen]
