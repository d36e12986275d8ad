"""Memories: what a method keeps of the batches before."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize


class Queue(nn.Module):
    """The last ``size`` keys, first in, first out; filled with random directions at the start (MoCo's).

    ``keys`` stand in the order of their slots, ``pointer`` is the slot that is overwritten next: both are buffers, so a
    checkpoint has them. Push after the backward pass, and on every process the same (gathered) keys.

    >>> queue = Queue(4, 2)
    >>> queue.push_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> queue.keys[:2], int(queue.pointer)
    (tensor([[1., 0.],
            [0., 1.]]), 2)
    """

    keys: Float[Tensor, "size d"]
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"the queue's size is {size}; it must be at least 1")
        self.register_buffer("keys", normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push_(self, keys: Float[Tensor, "n d"]) -> None:
        """Overwrites the oldest ``n`` keys; the size must be a multiple of ``n``.

        Keys that are not finite leave what was there, so that a step that a guard skipped does no lasting harm.
        """
        size, n = len(self.keys), len(keys)
        if size % n:
            raise ValueError(f"a queue of {size} keys cannot take {n} at a time; make its size a multiple of the batch")
        slots = self.pointer + torch.arange(n, device=self.keys.device)  # no wrap within one push: n divides the size
        finite = keys.isfinite().all(dim=1, keepdim=True)
        self.keys[slots] = torch.where(finite, keys.detach().to(self.keys.dtype), self.keys[slots])
        self.pointer.add_(n).remainder_(size)
