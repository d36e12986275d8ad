"""Work that may crash or hang its process: done in a forked child, case by case, under a limit of time."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

C = TypeVar("C")
R = TypeVar("R")


class Died(NamedTuple):
    """What became of a case that took its process with it."""

    how: str


def tried(cases: Sequence[C], work: Callable[[C], R], *, seconds: float) -> Iterator[R | Died]:
    """``work`` of each case, in order; ``Died`` where it took longer than ``seconds`` or ended its process.

    An exception of ``work`` is a death too: what is expected comes back as a value.
    """
    done = 0
    while done < len(cases):
        pid, answers = _forked(cases[done:], work)
        try:
            while done < len(cases):
                if not answers.poll(seconds):
                    yield Died(f"took more than {seconds:g} s")
                    done += 1
                    break
                try:
                    answer = answers.recv()
                except EOFError:
                    yield Died("ended its process")
                    done += 1
                    break
                yield answer
                done += 1
        finally:
            os.kill(pid, signal.SIGKILL)
            answers.close()
            os.waitpid(pid, 0)


def _forked(cases: Sequence[C], work: Callable[[C], R]) -> tuple[int, Connection]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads in the parent: the child is single-threaded
        pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        ours.close()
        for case in cases:
            try:
                theirs.send(work(case))
            except Exception as error:
                theirs.send(Died(f"{type(error).__name__}: {error}"[:500]))
    finally:
        os._exit(0)
