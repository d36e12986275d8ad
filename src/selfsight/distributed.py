"""Several processes: a differentiable gather, a mean and a sum. In one process each is the identity."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def world_size() -> int:
    """The number of processes, 1 where none were started together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All-gather forward; backward sums each rank's gradient for this rank's rows (a reduce-scatter)."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()  # what comes in may be another's gradient too
        dist.all_reduce(grad)  # gloo has no reduce-scatter; on the sizes gathered here the difference is small
        return grad.chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    """All-reduce forward and backward: every rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def gather(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "n ..."]:
    """The rows of all processes, in rank order, with gradients: each rank must bring the same number of rows.

    With each rank's loss a mean over its own anchors and gradients averaged over ranks, the result is the gradient of
    the joined batch.
    """
    return x if world_size() == 1 else _Gather.apply(x)  # pyright: ignore[reportReturnType]


def total(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over processes, with gradients."""
    return x if world_size() == 1 else _Sum.apply(x)  # pyright: ignore[reportReturnType]


def mean(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The mean over processes, with gradients."""
    return total(x) / world_size()


def shared_generator(device: torch.device) -> torch.Generator:
    """A generator in the same state on all processes: for what is drawn for the joined batch.

    The first process seeds it. The engine seeds that process's own generator anew for each micro-batch, so a resumed
    run draws the same, and so does any number of processes.
    """
    seed = torch.randint(1 << 62, (1,))
    if world_size() > 1:
        seed = gather(seed.to(device))[:1]
    return torch.Generator(device).manual_seed(int(seed))
