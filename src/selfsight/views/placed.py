"""AMDIM's two views: one flip for both, translations with mirrored borders, and the places that the loss looks from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.batches import PlacedViews
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import FLIP, View

_SHIFTS = 0.8
"""How often a view is translated (Philip-Bachman/amdim-public 8754ae1, datasets.py)."""


@dataclass(frozen=True)
class PlacedPair(Pipeline[PlacedViews]):
    """Two views of each image that are flipped together; ``placed_views`` builds it."""

    shift: int

    def plan(self, key: Key) -> Plan:
        drawn = dict(super().plan(key))
        drawn["view1"][:, FLIP] = drawn["view0"][:, FLIP]
        return {**drawn, "shift": uniforms(key, "shift", 6), "place": uniforms(key, "place", 2)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> PlacedViews:
        if self.shift:
            x = [translate(view, self._pixels(u)) for view, u in zip(x, plan["shift"].cpu().split(3, 1), strict=True)]
        return PlacedViews(x[0], x[1], plan["place"].to(x[0].device), index)

    def _pixels(self, u: Float[Tensor, "b 3"]) -> Int[Tensor, "b 2"]:
        """Down and right, each uniform in ``-shift .. shift``, or neither."""
        pixels = torch.floor(u[:, 1:].double() * (2 * self.shift + 1)).long() - self.shift
        return torch.where(u[:, :1] < _SHIFTS, pixels, 0)

    def describe(self) -> str:
        """Each view, and what the two share."""
        shift = f", translated by up to {self.shift} px {_SHIFTS:g}" if self.shift else ""
        return f"{super().describe()}; both flipped or neither{shift}"


def translate(x: Float[Tensor, "b c h w"], pixels: Int[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Moves each image by so many pixels down and right; what was outside is the image mirrored at its border.

    >>> translate(torch.arange(4.0).expand(1, 1, 4, 4), torch.tensor([[0, 2]]))[0, 0, 0]
    tensor([2., 1., 0., 1.])
    """
    for axis in (2, 3):
        size = x.shape[axis]
        at = (torch.arange(size) - pixels[:, axis - 2, None]).abs()
        at = (size - 1 - (size - 1 - at).abs()).to(x.device)
        shape = [len(x), 1, 1, 1]
        shape[axis] = size
        x = x.gather(axis, at.view(shape).expand_as(x))
    return x


def placed_views(view: View, *, shift: int = 0) -> PlacedPair:
    """Two independent draws of ``view`` but for the flip, which they share, each translated by up to ``shift`` pixels.

    >>> views = placed_views(View(size=32), shift=4)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key).place.shape
    torch.Size([2, 2])
    """
    if not 0 <= shift < view.size:
        raise ValueError(f"a view of {view.size} px can be translated by 0 to {view.size - 1} px, not {shift}")
    return PlacedPair((view, view), shift)
