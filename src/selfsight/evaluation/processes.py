"""Several processes for evaluation and embedding: joined where a launcher (torchrun) has started them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from selfsight import distributed
from selfsight.engine.machine import pick_device


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
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield place
    finally:
        if mine:
            dist.destroy_process_group()


def meet(device: torch.device) -> None:
    """Waits for all processes."""
    distributed.total(torch.zeros(1, device=device))
