"""Nearest neighbours in a memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.losses.precision import full, no_autocast

BLOCK = 8192
"""Keys that are compared at a time: 4096 queries hold 128 MiB of similarities, where a queue of 98,304 has 1.5 GiB."""


@torch.no_grad()
def nearest(queries: Float[Tensor, "b d"], keys: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """The greatest inner product of each query with a key, and that key's position; the first of equal ones.

    For unit vectors the key of the greatest inner product is the nearest. In float32 under autocast too: in bfloat16
    all keys of a neighbourhood look alike.

    >>> similarity, place = nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    >>> similarity, place
    (tensor([0.6000]), tensor([1]))
    """
    q, k = full(queries), full(keys)
    best = q.new_full((len(q),), -torch.inf)
    place = torch.zeros(len(q), dtype=torch.long, device=q.device)
    with no_autocast(q):
        for start in range(0, len(k), BLOCK):
            value, index = (q @ k[start : start + BLOCK].T.to(q.dtype)).max(dim=1)
            better = value > best
            best = torch.where(better, value, best)
            place = torch.where(better, index + start, place)
    return best, place
