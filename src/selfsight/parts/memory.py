"""Memories: what a method keeps of the batches before."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from selfsight.losses.precision import full, no_autocast


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


class Bank(nn.Module):
    """One vector for each of ``samples`` images: a moving average of its embeddings, of unit length once it was seen.

    It starts with entries drawn from U(-σ, σ), σ² = 3 / ``width``: of unit length on average (InstDisc's). Rows are the
    images' indices in their source. The buffer is in the checkpoint, and updated with the same (gathered) embeddings it
    is equal on every process.

    >>> bank = Bank(10, 4)
    >>> bank.update_(torch.tensor([3]), torch.tensor([[0.0, 0.0, 0.0, 2.0]]), momentum=0.0)
    >>> bank.vectors[3]
    tensor([0., 0., 0., 1.])
    """

    vectors: Float[Tensor, "n d"]

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"the bank is for {samples} images; it needs at least 1")
        bound = (3 / width) ** 0.5
        self.register_buffer("vectors", torch.empty(samples, width).uniform_(-bound, bound))

    def scores(self, f: Float[Tensor, "b d"], rows: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The inner product of each embedding with ``k`` rows of its own; no gradient reaches the bank.

        The rows are read a few embeddings at a time, and again in the backward pass: for a batch of 256 with 4096 rows
        each they would take half a gigabyte.
        """
        return _RowScores.apply(full(f), self.vectors, rows)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def update_(self, index: Int[Tensor, " n"], f: Float[Tensor, "n d"], *, momentum: float) -> None:
        r"""Moves the rows of ``index`` towards ``f``: :math:`v \leftarrow \mathrm{norm}(m v + (1 - m) f)`.

        An index that stands there twice (a substitute for an unreadable image may be any other) takes its last ``f``.
        Rows that would not be finite stay what they were.
        """
        order = index.argsort(stable=True)
        last = order[torch.searchsorted(index[order], index, right=True) - 1]  # so equal indices write equal rows
        before = self.vectors[index]
        after = normalize(torch.lerp(f[last].to(before.dtype), before, momentum), dim=1)
        finite = after.isfinite().all(dim=1, keepdim=True)
        self.vectors[index] = torch.where(finite, after, before)


class _RowScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, rows)
        with no_autocast(f):
            parts = [torch.bmm(vectors[own], x[:, :, None])[:, :, 0] for x, own in _few(vectors, f, rows)]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's own type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        vectors, rows = ctx.saved_tensors
        with no_autocast(vectors):
            parts = [torch.bmm(g[:, None], vectors[own])[:, 0] for g, own in _few(vectors, grads[0], rows)]
        return torch.cat(parts), None, None


_ROOM = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Numbers of the bank that are read at a time: 16 MiB, on a GPU 256 MiB."""


def _few(vectors: Tensor, x: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """``x`` and ``rows`` in pieces."""
    room = _ROOM.get(vectors.device.type, _ROOM["cpu"])
    step = max(room // (rows.shape[1] * vectors.shape[1]), 1)
    for start in range(0, len(rows), step):
        yield x[start : start + step], rows[start : start + step]


def latest(new: Int[Tensor, " n"], before: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """The ``k`` indices seen last, each once: those of ``new``, then the rest of ``before`` in their order.

    ``before`` must hold distinct indices. Nothing waits for the device: the result's size is known beforehand.

    >>> latest(torch.tensor([7, 2, 7]), torch.tensor([5, 2, 3, 4]))
    tensor([7, 2, 5, 3])
    """
    if len(new) > len(before):
        raise ValueError(f"{len(new)} new indices do not fit among the last {len(before)}; keep at least as many")
    both = torch.cat([new, before])
    order = both.argsort(stable=True)
    ascending = both[order]
    again = torch.zeros_like(both)
    again[order[1:]] = (ascending[1:] == ascending[:-1]).to(both.dtype)  # in a stable order the first one stays
    return both[again.argsort(stable=True)[: len(before)]]
