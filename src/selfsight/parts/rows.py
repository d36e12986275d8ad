"""A large matrix of which each step reads some rows: the weights of a classifier with a class for each image."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Settle = Callable[[Tensor], None]

_NAME = "settle"


def settles(weight: nn.Parameter, settle: Settle) -> None:
    """Says that an optimiser leaves rows of ``weight`` without a gradient as they are until ``settle(rows)``."""
    setattr(weight, _NAME, settle)


class Rows(nn.Module):
    """``count`` trainable rows, drawn from a normal distribution of standard deviation ``std``.

    The gradient has all rows, zeros for those that were not read, as any optimiser expects. An optimiser that puts off
    what such rows have coming (decay, momentum) says so by :func:`settles`: then rows are brought up to date before
    they are read, and the gradient is sparse and has the rows that were read.

    >>> rows = Rows(10, 4)
    >>> rows(torch.tensor([0, 7])).shape
    torch.Size([2, 4])
    """

    def __init__(self, count: int, width: int, *, std: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width).normal_(std=std))

    def forward(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        """The rows at ``rows``, ascending and distinct."""
        settle: Settle | None = getattr(self.weight, _NAME, None)
        if settle is None:
            return self.weight[rows]
        settle(rows)
        return _Read.apply(self.weight, rows)  # pyright: ignore[reportReturnType]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return weight[rows]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's own type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        # rows are ascending and distinct: nothing to check, and nothing to wait for
        grad = torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]
            rows[None], grads[0], ctx.shape, is_coalesced=True, check_invariants=False
        )
        return grad, None
