"""Signs of life between processes: one that dies, hangs or is cut off ends the run instead of letting the others wait.

A process that dies closes its connections, and the others' next message to it fails at once. One that hangs, or whose
machine is cut off, does not: so each sends the first process a datagram every few seconds, and that one answers. Who
was heard of once and then falls silent has left. Where datagrams do not pass, nobody is ever heard of, and nobody is
missed. Anybody can send a datagram: one counts where it begins with the run's own word, drawn by the first process.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from selfsight.engine.launch import PREPARED
from selfsight.engine.machine import Machine
from selfsight.errors import ToldElsewhere, TrainingError

BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 30.0
"""Seconds after which a process that was heard of has left."""


@contextmanager
def together(machine: Machine) -> Iterator[None]:
    """What several processes do in common: where one leaves, the others end within a minute, and one of them tells."""
    if machine.world == 1:
        yield
        return
    pulse = _Pulse(machine)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TrainingError) or not _by_another(error):
            raise
        text = f"another of the {machine.world} processes has left the run; {_KEPT}"
        tells = PREPARED not in os.environ and _first_of_its_machine()
        raise (TrainingError(text) if tells else ToldElsewhere(text)) from error
    finally:
        pulse.stop()


_KEPT = "its last checkpoint is kept: go on with the same command and --resume"


def _by_another(error: RuntimeError) -> bool:
    """Whether a message to another process failed: gloo's errors are of no kind of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_of_its_machine() -> bool:
    """The one that tells, where all of a machine's know the same."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def _leave(rank: int, silent: list[int], world: int) -> None:
    """Ends this process from outside its main thread, which waits for one that will never answer."""
    who = f"process {silent[0]}" if len(silent) == 1 else f"processes {', '.join(map(str, silent))}"
    text = f"{who} of {world} silent for {SILENCE:.0f} s: dead, stuck, or on a machine that is cut off; {_KEPT}"
    if rank == int(silent == [0]) or _first_of_its_machine():
        print(f"selfsight: {text}", file=sys.stderr, flush=True)
    os._exit(1)


class _Pulse:
    """This process's sign of life, and its ear for the others'; the first hears all, the others hear it alone."""

    def __init__(self, machine: Machine, leave: Callable[[int, list[int], int], None] = _leave) -> None:
        self.rank, self.world, self.leave = machine.rank, machine.world, leave
        self.heard: dict[int, float] = {}
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0][0]
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(BEAT / 4)
        if self.rank == 0:
            self.socket.bind(("", 0))
        # what the first one says to all: where it listens, and a word that only this run's processes know
        said = [(self.socket.getsockname()[1], secrets.token_hex(8)) if self.rank == 0 else (0, "")]
        dist.broadcast_object_list(said, src=0)
        (port, self.word), self.others = said[0], range(1, self.world) if self.rank == 0 else range(1)
        self.first = (host, port)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="pulse")
        self.thread.start()

    def stop(self) -> None:
        """The end of what was done in common."""
        self.over.set()
        self.thread.join()
        self.socket.close()

    def _run(self) -> None:
        sent = -BEAT
        while not self.over.is_set():
            now = time.monotonic()
            if self.rank and now - sent >= BEAT:
                self._send(self.first)
                sent = now
            self._hear()
            silent = [rank for rank, last in sorted(self.heard.items()) if time.monotonic() - last > SILENCE]
            if silent:
                self.leave(self.rank, silent, self.world)
                return

    def _send(self, where: tuple[str, int]) -> None:
        try:
            self.socket.sendto(f"{self.word} {self.rank}".encode(), where)
        except OSError:  # no way there at the moment: the silence that follows is what counts
            self.over.wait(BEAT / 4)

    def _hear(self) -> None:
        try:
            said, where = self.socket.recvfrom(64)
        except OSError:  # nothing said for a while, or a machine that is gone says so
            return
        for rank in self.others:
            if secrets.compare_digest(said, f"{self.word} {rank}".encode()):
                self.heard[rank] = time.monotonic()
                if self.rank == 0:
                    self._send(where)
