"""The command line in forks of one warm process, which can be killed at any instant: a fork starts at once.

Run as a program this is that process. A line of its input asks for one command, in JSON; a line of its output says how
it ended. What a request may do to its child, and to nobody else:

- ``kill_after``: seconds of its own processor time until the child gets SIGKILL, whatever it is doing;
- ``die_at``: the child dies by its own SIGKILL in the middle of one write to a file, or beside one renaming;
- ``disk``: all files under a folder together get no more than so many bytes, as on a disk that is full;
- ``clock``: the time of day jumps by up to this many seconds, forth and back, whenever it is read.

With ``events`` the child lists its writes and renamings, of which ``die_at`` chooses.
"""

import builtins
import errno
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

LONGEST = 900.0
"""Seconds after which a child that has not ended is taken to hang, however busy the machine."""


class Ended(NamedTuple):
    """How a command ended: its exit code, minus nine where it was killed; its processor time; what it said; writes."""

    code: int
    seconds: float
    said: str
    events: list[list[str]]

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Warm:
    """The process that forks; ``command`` asks it for one command and waits for its end."""

    def __init__(self, imports: Sequence[str] = ("selfsight.cli", "selfsight.pretraining", "selfsight.report.page")):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *imports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def command(self, words: Sequence[str], *, cache: Path, **conditions: Any) -> Ended:
        """``selfsight WORDS`` with ``cache`` as the cache folder, under the conditions named above."""
        assert self.process.stdin
        assert self.process.stdout
        request = {"words": list(words), "cache": str(cache), **conditions}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class _Raw(io.FileIO):
    """A file whose writes are looked at one by one, right before the system gets them."""

    def write(self, data: Any) -> int:
        return _at_write(self, memoryview(data).cast("B"))

    def plain(self, data: Any) -> int:
        return super().write(data)


_at_write: Callable[[_Raw, memoryview], int] = _Raw.plain
_open = io.open


def _watched(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
    """``open`` whose writers are ``_Raw``."""
    if isinstance(file, int) or not set(mode) & set("wax+"):
        return _open(file, mode, buffering, *rest, **named)
    raw = _Raw(file, mode.replace("b", "").replace("t", ""))
    whole = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return whole if "b" in mode else io.TextIOWrapper(whole, *rest, **named)


def _name(path: Any) -> str:
    """A file's name as it will be: without the dot and the number of one that is written beside."""
    parts = os.path.basename(os.fspath(path)).strip(".").split(".")
    return ".".join(part for part in parts if not part.isdigit() and part != "part")


def _watch(request: dict[str, Any], events: list[list[str]]) -> None:
    global _at_write  # noqa: PLW0603 - one child, one condition
    target = request.get("die_at")
    disk = request.get("disk")
    replace = os.replace

    def reached(kind: str, path: Any) -> bool:
        events.append([kind, _name(path)])
        return target is not None and events[-1] == target[:2] and events.count(target[:2]) == target[2]

    def die() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("alive")

    def write(file: _Raw, data: memoryview) -> int:
        if reached("write", file.name):
            file.plain(data[: len(data) // 2])
            die()
        if disk and os.path.realpath(file.name).startswith(os.path.realpath(disk[0])):
            used = sum(p.stat().st_size for p in Path(disk[0]).rglob("*") if p.is_file())
            if used + len(data) > disk[1]:
                done = file.plain(data[: disk[1] - used]) if disk[1] > used else 0
                if not done:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
                return done
        return file.plain(data)

    def rename(source: Any, goal: Any, **named: Any) -> None:
        if reached("before renaming", goal):
            die()
        replace(source, goal, **named)
        if reached("after renaming", goal):
            die()

    _at_write = write
    builtins.open = io.open = _watched  # pyright: ignore[reportAttributeAccessIssue]
    os.replace = rename


def _jump(seconds: float) -> None:
    """The time of day, at each reading another; what has no date goes on as ever."""
    drawn, now, now_ns = random.Random(0), time.time, time.time_ns
    time.time = lambda: now() + drawn.uniform(-seconds, seconds)
    time.time_ns = lambda: now_ns() + int(drawn.uniform(-seconds, seconds) * 1e9)


def _child(request: dict[str, Any], said: int, result: int) -> NoReturn:
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ["SELFSIGHT_CACHE"] = request["cache"]
    events: list[list[str]] = []
    if request.get("clock"):
        _jump(request["clock"])
    if any(request.get(key) for key in ("die_at", "disk", "events")):
        _watch(request, events)
    code = 70
    try:
        from selfsight.cli import main  # noqa: PLC0415

        main(request["words"])
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 70
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        listed = {"events": events if request.get("events") else [], "modules": sorted(sys.modules)}
        os.write(result, json.dumps(listed).encode())
        os._exit(code)


def _processor_seconds(child: int) -> float:
    """The processor time of a process that is ours and may have ended a moment ago: Linux's clock of its number."""
    try:
        return time.clock_gettime((~child << 3) | 2)
    except OSError:
        return 0.0


def _carried_out(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as result:
        began, limit = time.monotonic(), request.get("kill_after")
        child = os.fork()
        if child == 0:
            _child(request, said.fileno(), result.fileno())
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            passed = time.monotonic() - began
            if ended:
                break
            if passed > LONGEST or (limit is not None and _processor_seconds(child) > limit):
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)
        said.seek(0)
        result.seek(0)
        words, listed = said.read().decode(errors="replace"), json.loads(result.read() or b"{}")
    for name in listed.get("modules", ()):  # what one child had to import, the next ones find
        with suppress(Exception):
            importlib.import_module(name)
    hung = passed > LONGEST
    return {
        "code": 124 if hung else os.waitstatus_to_exitcode(status),
        "seconds": usage.ru_utime + usage.ru_stime,
        "said": words,
        "events": listed.get("events", []),
    }


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        os.write(answers, json.dumps(_carried_out(json.loads(line))).encode() + b"\n")
