"""Blockwise masks, as BEiT and iBOT draw them: rectangles of patches until a budget is used up.

A block's area is uniform between ``smallest`` and what is left of the budget, its height over its width log-uniform in
``aspect``, its place uniform among those where it fits. It is taken if it hides something new and no more than is left
of the budget. After ten blocks in a row that were not, the mask stays as it is. So the budget is never exceeded and
often not quite reached, and the middle of an image is hidden far more often than its corners.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FAILURES = 10
"""Blocks in a row that may not be taken before a mask is left as it is (microsoft/unilm, ``masking_generator.py``)."""

BLOCKS = 128
"""Blocks that are tried for one image at most. Of 20,000 masks of 75 of 14x14 patches none needed more than 93."""

DRAWS = 4 * BLOCKS
"""Uniform numbers of one mask: area, aspect, top and left of each block."""


def block_masks(
    u: Float[Tensor, "b n"],
    grid: int,
    budget: float | Float[Tensor, " b"],
    *,
    smallest: float = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    exact: bool = False,
) -> Bool[Tensor, "b g g"]:
    """The masks that the uniform numbers ``u``, ``DRAWS`` for each image, mean on ``grid`` by ``grid`` patches.

    Args:
        u: in [0, 1).
        grid: patches a side.
        budget: patches to hide at most, of all images or of each; iBOT's is no whole number.
        smallest: the least area of a block. Where less is left of the budget, areas are drawn from what is left up to
            ``smallest``, as in the code, whose limits may come in any order.
        aspect: limits of height over width.
        exact: hides as many patches as the budget allows: what blocks left over goes to single patches, drawn by key.

    >>> u = torch.rand(8, DRAWS, generator=torch.Generator().manual_seed(0))
    >>> masks = block_masks(u, 14, 75)
    >>> bool((masks.flatten(1).sum(1) <= 75).all())
    True
    """
    u = u.double().view(len(u), BLOCKS, 4)
    left = torch.as_tensor(budget, dtype=torch.float64).expand(len(u)).clone()
    masks = torch.zeros(len(u), grid, grid, dtype=torch.bool)
    failures = torch.zeros(len(u), dtype=torch.long)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    places = torch.arange(grid)
    for k in range(BLOCKS):
        going = ((left > 0) & (failures < FAILURES)).nonzero()[:, 0]
        if not len(going):
            break
        now, spare, before = u[going, k], left[going], masks[going]
        area = smallest + now[:, 0] * (spare - smallest)
        ratio = torch.exp(low + now[:, 1] * (high - low))
        height, width = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        top, from_left = (torch.floor(now[:, 2 + i] * (grid - side + 1)) for i, side in enumerate((height, width)))
        rows = (places >= top[:, None]) & (places < (top + height)[:, None])
        columns = (places >= from_left[:, None]) & (places < (from_left + width)[:, None])
        block = rows[:, :, None] & columns[:, None, :]
        new = (block & ~before).sum(dim=(1, 2))
        taken = (height < grid) & (width < grid) & (new > 0) & (new <= spare)
        masks[going] = before | (block & taken[:, None, None])
        left[going] = spare - torch.where(taken, new, 0)
        failures[going] = torch.where(taken, 0, failures[going] + 1)
    return _filled(masks, u, left) if exact else masks


def _filled(
    masks: Bool[Tensor, "b g g"], u: Float[Tensor, "b k 4"], left: Float[Tensor, " b"]
) -> Bool[Tensor, "b g g"]:
    """Hides so many more patches, those whose numbers are smallest; the numbers are the blocks' own, shifted."""
    flat = masks.flatten(1)
    n = flat.shape[1]
    numbers = u.flatten(1)
    if numbers.shape[1] < n:
        raise ValueError(f"{n} patches are more than the {numbers.shape[1]} numbers of a mask")
    order = numbers[:, -n:].masked_fill(flat, 2.0).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(n).expand_as(order))
    return (flat | (rank < left.floor()[:, None])).view_as(masks)
