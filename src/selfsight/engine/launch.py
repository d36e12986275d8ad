"""Several processes on one machine: this program again, once a device, with the environment that Fabric reads."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Literal

from selfsight.errors import TrainingError, UserError

GRACE = 10.0
"""Seconds that the other processes get to leave by themselves after one has failed."""
INTERRUPTED = 130
_PLACE = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


PREPARED = "SELFSIGHT_PREPARED"
"""Set for the children of ``launch``, whose folder the parent has made: the parent's process number."""


def is_launched() -> bool:
    """Whether this process is one of several that were started together (by ``launch``, torchrun or SLURM)."""
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return slurm or all(name in os.environ for name in ("RANK", "LOCAL_RANK"))


def is_orphan() -> bool:
    """Whether ``launch`` started this process and was killed since: nobody waits for it or could end it."""
    known = PREPARED in os.environ and os.name == "posix"  # elsewhere an orphan keeps its parent's number
    return known and os.environ[PREPARED] != str(os.getppid())


def launch(processes: int, arguments: Sequence[str]) -> Literal["done", "stopped"]:
    """Runs ``python -m selfsight ARGUMENTS`` in each of ``processes`` processes, waits for all, says how they ended.

    Ctrl-C reaches the children by the terminal; SIGTERM is handed on; either way they save and leave with 130. When one
    fails, the others are told to leave and get ``GRACE`` seconds for it. Where this process itself is killed, the
    children notice (``is_orphan``), save and leave.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max((os.cpu_count() or 1) // processes, 1)
    children: list[subprocess.Popen[bytes]] = []
    for rank in range(processes):
        place = dict(zip(_PLACE, map(str, (rank, rank, 0, processes, processes)), strict=True))
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **place, PREPARED: str(os.getpid())}
        children.append(subprocess.Popen([sys.executable, "-m", "selfsight", *arguments], env=environment))

    def hand_on(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, hand_on), signal.signal(signal.SIGINT, signal.SIG_IGN)
    alive: set[int] = set()  # when the first had failed: what ends them is what follows here
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() not in (None, 0, INTERRUPTED) for child in children):
                alive = {rank for rank, child in enumerate(children) if child.poll() is None}
                _end(children)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    codes = [child.wait() for child in children]
    if set(codes) <= {0, INTERRUPTED}:
        return "stopped" if any(codes) else "done"
    killed = [(rank, signal.Signals(-code).name) for rank, code in enumerate(codes) if code < 0 and rank not in alive]
    for rank, name in killed[:1]:
        raise TrainingError(
            f"process {rank} of {processes} was killed ({name}; where nobody did it, for lack of memory); "
            "the last checkpoint is kept: go on with the same command and --resume"
        )
    text = f"one of {processes} processes failed (exit codes {codes}); its message stands above"
    raise UserError(text) if 2 in codes else TrainingError(text)


def _end(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Gives the others time to leave for the same reason as the first; who waits for a dead process never will."""
    until = time.monotonic() + GRACE
    while time.monotonic() < until and any(child.poll() is None for child in children):
        time.sleep(0.1)
    for child in children:
        if child.poll() is None:
            child.kill()
