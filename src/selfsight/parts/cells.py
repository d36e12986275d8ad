"""Cells of an image, some of them hidden: as a map, as the finer map of all that lies in them, behind a mask token."""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def hidden_cells(masked: Int[Tensor, "b m"], cells: int) -> Bool[Tensor, "b side side"]:
    """A square map of ``cells`` cells in row-major order that is true where they are hidden.

    >>> hidden_cells(torch.tensor([[0, 3]]), 4).int().tolist()
    [[[1, 0], [0, 1]]]
    """
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{cells} cells make no square")
    flat = torch.zeros(len(masked), cells, dtype=torch.bool, device=masked.device)
    return flat.scatter(1, masked.long(), True).view(-1, side, side)


def enlarge(x: Shaped[Tensor, "b rows columns"], times: int) -> Shaped[Tensor, "b more_rows more_columns"]:
    """Each cell as ``times`` by ``times`` equal ones.

    >>> enlarge(torch.tensor([[[1, 2]]]), 2).tolist()
    [[[1, 1, 2, 2], [1, 1, 2, 2]]]
    """
    return x.repeat_interleave(times, 1).repeat_interleave(times, 2)


def behind(
    token: Float[Tensor, "*one d"], patches: Float[Tensor, "b rows columns d"], hidden: Bool[Tensor, "b rows columns"]
) -> Float[Tensor, "b rows columns d"]:
    """The embedded patches, those that are ``hidden`` replaced by the mask token.

    >>> behind(torch.zeros(1), torch.ones(1, 1, 2, 1), torch.tensor([[[True, False]]])).flatten().tolist()
    [0.0, 1.0]
    """
    return torch.where(hidden[..., None], token.to(patches.dtype), patches)
