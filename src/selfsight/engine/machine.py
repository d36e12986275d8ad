"""Where a run runs: device, processes and precision. Lightning Fabric lives here alone."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfsight.allocator import keep_freed_memory
from selfsight.engine.optimisers import gradient
from selfsight.errors import UserError
from selfsight.flags import Flags
from selfsight.precision import bf16_training

try:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
except ImportError:  # the same Fabric inside the larger package
    from lightning.fabric import Fabric  # pyright: ignore[reportMissingImports]
    from lightning.fabric.strategies.ddp import DDPStrategy  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Machine:
    """One process's place among the others."""

    device: torch.device
    rank: int
    world: int
    precision: str
    autocast: Callable[[], AbstractContextManager[object]]

    @property
    def first(self) -> bool:
        return self.rank == 0

    def describe(self) -> dict[str, str | int]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        return {
            "device": f"{self.device.type} ({name})",
            "processes": self.world,
            "threads": torch.get_num_threads(),
            "precision": self.precision,
        }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform  # noqa: PLC0415 - only where the system has no cpuinfo

        return platform.processor() or platform.machine()


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is fast there: AVX512-BF16 or AMX on a CPU, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def pick_device(wanted: str) -> str:
    """``cpu`` or ``cuda``; refuses a GPU where there is none."""
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise UserError("--device is 'cuda' but this machine shows no GPU; use --device cpu or check the driver")
    return "cuda" if found and wanted != "cpu" else "cpu"


def pick_precision(wanted: str, kind: str) -> str:
    """``auto`` is bf16 where it is fast, else 32; refuses 16 on a CPU."""
    if wanted == "16" and kind == "cpu":
        raise UserError("--precision 16 needs a GPU; use bf16 or 32 on a CPU")
    if wanted != "auto":
        return wanted
    return "bf16" if has_bf16(torch.device(kind)) else "32"


def open_machine(flags: Flags) -> Machine:
    """Joins the processes that were started together (torchrun, SLURM, MPI) and settles device and precision."""
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    kind = pick_device(flags.device)
    if kind == "cuda" and flags.devices > torch.cuda.device_count() and "LOCAL_RANK" not in os.environ:
        raise UserError(f"--devices is {flags.devices} but this machine has {torch.cuda.device_count()} GPUs")
    if kind == "cpu":
        keep_freed_memory()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", os.environ.get("SLURM_NNODES", "1")))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", flags.devices))
    processes = local * nodes
    strategy = DDPStrategy(process_group_backend="nccl" if kind == "cuda" else "gloo") if processes > 1 else "auto"
    precision = pick_precision(flags.precision, kind)
    fabric = Fabric(
        accelerator=kind,
        devices=local,
        num_nodes=nodes,
        strategy=strategy,
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision],  # pyright: ignore[reportArgumentType]
    )
    fabric.launch()
    on_cpu = precision == "bf16" and kind == "cpu"
    autocast = partial(bf16_training, kind) if on_cpu else fabric.autocast
    return Machine(fabric.device, fabric.global_rank, fabric.world_size, precision, autocast)


def synchronise_(method: nn.Module) -> None:
    """Every process starts from the first one's weights and buffers."""
    for tensor in [*method.parameters(), *method.buffers()]:
        dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_gradients_(parameters: list[nn.Parameter], *more: Tensor) -> None:
    """The mean of each gradient over the processes, and of what else is given, in one flat message a dtype.

    A parameter without a gradient on one process has none on any: all processes run the same graph. And a sparse
    gradient has the same rows on all.
    """
    by_kind: dict[torch.dtype, list[Tensor]] = {}
    for grad in (*map(gradient, parameters), *more):
        if grad is not None:
            by_kind.setdefault(grad.dtype, []).append(grad)
    for grads in by_kind.values():
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))
