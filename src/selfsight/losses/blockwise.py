r"""The one kernel of the pairwise losses: a log-sum-exp over candidates that never holds the matrix of their scores.

The scores are computed in blocks, reduced at once, and computed again in the backward pass. So memory grows with
``(b + n) d`` and not with ``b n``; where anchors and candidates are the same embeddings, the symmetry of the matrix
saves half of the products.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsight.losses.precision import full, no_autocast

_SIDE = {"cpu": 512, "cuda": 4096}
"""Rows and columns of a block. On a processor a float32 block of 512 x 512 fills half of a 2 MiB second-level cache
(256, 1024 and 2048 were slower on one core); a GPU wants blocks large enough to be busy, and 64 MiB is little there.
Fixed numbers rather than the machine's own cache size: a run's bits do not depend on it."""


def log_sum_exp(
    anchors: Float[Tensor, "b d"], candidates: Float[Tensor, "n d"], *, skip: Int[Tensor, "b s"] | None = None
) -> Float[Tensor, " b"]:
    r"""For each anchor the log of the summed exponentials of its inner products with the candidates.

    .. math:: \ell_i = \log \sum_{j \notin \mathrm{skip}_i} \exp(a_i^\top c_j)

    ``skip`` lists candidates that an anchor leaves out: itself, its positive. An anchor that leaves out all of them
    gets ``-inf``, with a gradient of zero. A temperature is the caller's: divide the anchors by it, and its gradient
    comes with theirs. When both arguments are one and the same tensor, the matrix is taken as symmetric, and so must
    ``skip`` be: if ``i`` skips ``j``, ``j`` skips ``i``. Differentiable once.

    >>> a, c = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    >>> torch.allclose(log_sum_exp(a, c), (a @ c.T).logsumexp(dim=1))
    True
    >>> skip = torch.tensor([[0], [4], [4]])
    >>> torch.allclose(log_sum_exp(a, c, skip=skip)[0], (a[0] @ c[1:].T).logsumexp(dim=0))
    True
    """
    symmetric = anchors is candidates
    a = full(anchors)
    c = a if symmetric else full(candidates).to(a.dtype)
    return _LogSumExp.apply(a, c, skip, symmetric)  # pyright: ignore[reportReturnType]


def _scores(a: Tensor, c: Tensor, skip: Tensor | None, first: int) -> Tensor:
    """The block of scores whose first column is candidate ``first``, ``-inf`` where skipped."""
    scores = a @ c.T
    for column in skip.T - first if skip is not None else ():
        inside = ((column >= 0) & (column < len(c)))[:, None]
        place = column.clamp(0, len(c) - 1)[:, None]
        scores.scatter_(1, place, scores.gather(1, place).masked_fill(inside, -torch.inf))
    return scores


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, skip: Tensor | None, symmetric: bool) -> Tensor:
        side = _SIDE.get(a.device.type, _SIDE["cuda"])
        out = a.new_full((len(a),), -torch.inf)
        with no_autocast(a):
            for i in range(0, len(a), side):
                rows = slice(i, i + side)
                for j in range(i if symmetric else 0, len(c), side):
                    columns = slice(j, j + side)
                    scores = _scores(a[rows], c[columns], None if skip is None else skip[rows], j)
                    out[rows] = torch.logaddexp(out[rows], scores.logsumexp(dim=1))
                    if symmetric and j > i:
                        out[columns] = torch.logaddexp(out[columns], scores.logsumexp(dim=0))
        ctx.save_for_backward(a, c, skip, out)
        ctx.symmetric, ctx.side = symmetric, side
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's own type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        a, c, skip, out = ctx.saved_tensors
        symmetric, side, grad = ctx.symmetric, ctx.side, grads[0]
        out = out.masked_fill(out == -torch.inf, torch.inf)  # nothing to choose from: all shares are zero
        grad_a = torch.zeros_like(a)
        grad_c = grad_a if symmetric else torch.zeros_like(c) if ctx.needs_input_grad[1] else None
        with no_autocast(a):
            for i in range(0, len(a), side):
                rows = slice(i, i + side)
                for j in range(i if symmetric else 0, len(c), side):
                    columns = slice(j, j + side)
                    scores = _scores(a[rows], c[columns], None if skip is None else skip[rows], j)
                    shares = (scores - out[rows, None]).exp_().mul_(grad[rows, None])
                    if symmetric:  # the same scores seen by the anchors of the columns
                        shares += scores.sub_(out[columns]).exp_().mul_(grad[columns])
                    grad_a[rows].addmm_(shares, c[columns])
                    if grad_c is not None and not (symmetric and i == j):
                        grad_c[columns].addmm_(shares.T, a[rows])
        return grad_a, None if symmetric else grad_c, None, None
