"""Several processes for evaluation and embedding: joined where a launcher (torchrun) has started them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from selfsight import distributed
from selfsight.engine.machine import pick_device

_numbers = count()


@cache
def _meeting_point() -> tuple[dist.Store, int, int]:  # pyright: ignore[reportPrivateImportUsage]
    """The store where the processes find each other, with rank and world size: one for the life of the process.

    A second store at the launcher's port would meet the first: a quick process joins the group of a slow one that has
    not yet left it, and both wait for ever.
    """
    return next(rendezvous("env://"))


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """This process's device (``auto``, ``cpu`` or ``cuda``), with a process group for as long as it is needed.

    A group that is already there is used and left as it is; under torchrun one is made and taken down.
    """
    kind = pick_device(device)
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    mine = launched and not dist.is_initialized()
    if kind == "cuda":
        torch.cuda.set_device(place)
    if mine:
        store, rank, size = _meeting_point()
        own = dist.PrefixStore(f"selfsight/{next(_numbers)}", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=own, rank=rank, world_size=size)
    try:
        yield place
    finally:
        if mine:
            dist.destroy_process_group()


def meet(device: torch.device) -> None:
    """Waits for all processes."""
    distributed.total(torch.zeros(1, device=device))
