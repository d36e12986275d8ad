"""One view of each image and a hole in it: a square in its middle, a few small squares, or a region of any shape.

Every image has a hole of its own, drawn by its key; the official code draws one a batch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from selfsight.batches import HiddenPixels
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import View

Hole = Literal["region", "blocks", "centre"]

BLOCKS = 4
"""Squares, each with a sixteenth of the view's area: together they hide up to a quarter (Pathak et al., 3.3)."""
CELLS = 0.06 * 128
"""Cells of noise along a view: a resolution of 0.06 on 128 px (pathak22/context-encoder, train_random.lua)."""
SHARE = (0.2, 0.3)
"""What a region hides of the view, likewise."""
_NOISE = 12
"""Cells that are drawn along an axis: those of a view, one for its place among them, three for the cubic."""


@dataclass(frozen=True)
class HoledView(Pipeline[HiddenPixels]):
    """``holed_view`` builds it."""

    hole: Hole
    overlap: int

    def plan(self, key: Key) -> Plan:
        count = {"region": _NOISE**2 + 3, "blocks": 2 * BLOCKS, "centre": 0}[self.hole]
        return {**super().plan(key), "hole": uniforms(key, "hole", count)} if count else super().plan(key)

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> HiddenPixels:
        size, device = self.views[0].size, x[0].device
        if self.hole == "centre":
            hidden = centre(size, self.overlap).to(device).expand(len(x[0]), -1, -1)
        else:
            hidden = (region if self.hole == "region" else blocks)(plan["hole"].to(device), size)
        return HiddenPixels(x[0], hidden, index)

    def describe(self) -> str:
        """The view, and what is hidden of it."""
        size = self.views[0].size
        words = {
            "region": f"a region of {SHARE[0]:.0%} to {SHARE[1]:.0%} hidden",
            "blocks": f"{BLOCKS} squares of {size // 4} px hidden",
            "centre": f"the central {size // 2 - 2 * self.overlap} px hidden",
        }
        return f"{super().describe()}; {words[self.hole]}"


def centre(size: int, overlap: int) -> Bool[Tensor, "1 s s"]:
    """The middle square of half the view's side, less a rim of ``overlap`` pixels."""
    at = torch.arange(size)
    inside = (at >= size // 4 + overlap) & (at < size // 4 + size // 2 - overlap)
    return (inside[:, None] & inside)[None]


def blocks(u: Float[Tensor, "b n"], size: int) -> Bool[Tensor, "b s s"]:
    """Squares of a quarter of the side, anywhere within the view; they may overlap."""
    side = size // 4
    start = torch.floor(u.double() * (size - side + 1)).unflatten(1, (2, -1))[..., None]
    at = torch.arange(size, device=u.device)
    rows, columns = ((at >= start) & (at < start + side)).unbind(1)
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1)


def region(u: Float[Tensor, "b n"], size: int) -> Bool[Tensor, "b s s"]:
    """Where noise, smoothed by a cubic, is lowest: a share of the view that is drawn from ``SHARE``.

    The code cuts the smoothed noise at a fixed level, and windows until one hides 20 to 30 % of it. Here the level
    follows from the share.
    """
    noise, at, share = u[:, : _NOISE**2], u[:, _NOISE**2 : _NOISE**2 + 2], u[:, -1]
    steps = (torch.arange(size, device=u.device, dtype=u.dtype) + 0.5) * (CELLS / size)
    place = (1 + at[..., None] + steps) * (2 / (_NOISE - 1)) - 1
    rows, columns = (axis.expand(-1, size, size) for axis in (place[:, 0, :, None], place[:, 1, None, :]))
    cells = noise.unflatten(1, (1, _NOISE, _NOISE))
    field = grid_sample(cells, torch.stack([columns, rows], dim=-1), "bicubic", "border", align_corners=True)[:, 0]
    count = ((SHARE[0] + share.double() * (SHARE[1] - SHARE[0])) * size**2).round().long()
    level = field.flatten(1).sort(dim=1).values.gather(1, count[:, None])
    return field < level[..., None]


def holed_view(view: View, *, hole: Hole, overlap: int = 0) -> HoledView:
    """One view of each image with a hole in it.

    Args:
        view: what is shown of the image.
        hole: a ``region`` of any shape, ``blocks``, or the square in the ``centre``.
        overlap: pixels by which the central square is smaller on each side.

    >>> views = holed_view(View(size=32), hole="centre", overlap=1)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> batch = views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> int(batch.hidden[0].sum())
    196
    """
    if hole not in get_args(Hole):
        raise ValueError(f"a hole is one of {', '.join(get_args(Hole))}, not {hole!r}")
    if view.size % 4:
        raise ValueError(f"a quarter of the side of {view.size} px is no whole number; take a multiple of 4")
    if hole == "centre" and not 0 <= 4 * overlap < view.size:
        raise ValueError(f"an overlap of {overlap} px leaves no hole in a view of {view.size} px; take a smaller one")
    return HoledView((view,), hole, overlap)
