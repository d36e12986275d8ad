"""Grids of overlapping patches, cut from a rendered view, each patch with its own jitter, flip and colours.

Everything random in a patch comes from numbers of its own in the plan (stream ``patches``), so that a patch tells
nothing of how its neighbours were changed.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.batches import Patches
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline, PlainView
from selfsight.views.primitives import DRAWS as PER_PRIMITIVE
from selfsight.views.primitives import primitive
from selfsight.views.protocol import Plan
from selfsight.views.render import rendered
from selfsight.views.view import DRAWS, View, boxes, colours

_DROP = 2
"""Numbers that a patch draws besides its view's: whether colours are dropped, and which one stays."""


@dataclass(frozen=True)
class PatchGrid(Pipeline[Patches]):
    """``patch_grid`` builds it; ``views`` has one view, of the whole crop, that is not normalised."""

    each: View
    stride: int
    drop: float
    primitives: int

    @property
    def side(self) -> int:
        """Patches along each axis."""
        return (self.views[0].size - self.each.size) // self.stride + 1

    def plan(self, key: Key) -> Plan:
        count = self.side**2 * (DRAWS + _DROP + self.primitives * PER_PRIMITIVE)
        return {**super().plan(key), "patches": uniforms(key, "patches", count)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> Patches:
        u = plan["patches"].cpu().unflatten(1, (self.side**2, -1)).flatten(0, 1)
        own, drop, changes = u.split([DRAWS, _DROP, self.primitives * PER_PRIMITIVE], dim=1)
        flat = self.jittered(x[0], own, changes)
        self._drop_(flat, drop)
        return Patches(flat.unflatten(0, (len(x[0]), self.side, self.side)), index)

    def jittered(
        self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "n draws"], changes: Float[Tensor, "n more"]
    ) -> Float[Tensor, "n c p p"]:
        """The patches of ``x``, image by image in row-major order, as each one's numbers change them.

        A jitter by ``each.padding`` shows a smaller sub-crop, drawn at random, in the middle of the patch; what lies
        round it is zero, after normalisation.
        """
        p, margin, n = self.each.size, self.each.padding, self.side**2
        box = boxes(self.each, u, p, p)
        place = torch.arange(len(u)) % n
        top = place // self.side * self.stride + box.top.long()
        left = place % self.side * self.stride + box.left.long()
        inside = torch.arange(p)
        across = torch.where(box.flip[:, None], inside.flip(0), inside)
        starts = ((top, inside), (left, across))
        rows, columns = ((start[:, None] + at).clamp(0, x.shape[-1] - 1).to(x.device) for start, at in starts)

        def take(some: Int[Tensor, " k"]) -> Float[Tensor, "c k p p"]:
            some = some.to(x.device)
            picked = x[(some // n)[:, None, None], :, rows[some][:, :, None], columns[some][:, None, :]]
            patches = picked.permute(3, 0, 1, 2).contiguous()
            for drawn in changes.split(PER_PRIMITIVE, dim=1) if self.primitives else ():
                patches = primitive(patches, drawn[some.cpu()])
            return patches

        out = rendered(take, [self.each], colours(self.each, u), x.device)
        if margin:
            shown = torch.zeros(p, device=x.device)
            shown[margin : p - margin] = 1
            out *= shown[:, None] * shown
        return out

    def _drop_(self, x: Float[Tensor, "n c p p"], u: Float[Tensor, "n 2"]) -> None:
        """Leaves one channel of three in some patches; the others become zero, after normalisation."""
        if not self.drop or x.shape[1] != 3:
            return
        keep = torch.nn.functional.one_hot((u[:, 1].double() * 3).long(), 3).bool() | (u[:, :1] >= self.drop)
        x *= keep[:, :, None, None].to(x)

    def describe(self) -> str:
        """The crop, the grid, and what happens to each patch."""
        grid = f"{self.side} x {self.side} patches of {self.each.size} px, {self.stride} px apart"
        margin = f", a sub-crop of {self.each.size - 2 * self.each.padding} px of each" if self.each.padding else ""
        own = replace(self.each, padding=0).describe().partition(", ")[2]
        own = f", {own}" if own else ""
        own = (f", {self.primitives} of AutoAugment's primitives" if self.primitives else "") + own
        dropped = f", two colours dropped {self.drop:g}" if self.drop else ""
        return f"{super().describe()}; {grid}{margin}{own}{dropped}"

    @property
    def plain(self) -> PlainView:
        """The evaluation view: as large as the crop, normalised as the patches are."""
        return replace(super().plain, normalise=self.each.normalise)


def patch_grid(crop: View, each: View, *, stride: int, drop: float = 0.0, primitives: int = 0) -> PatchGrid:
    """Patches of ``each.size`` pixels, ``stride`` apart, of ``crop``, as many as fit.

    Args:
        crop: the view that is cut into patches; its ``normalise`` is left to the patches.
        each: what is drawn for each patch: flip, colours, and with ``padding=m`` a sub-crop that is smaller by ``m`` on
            each side, padded back. ``scale`` must be None.
        stride: pixels from one patch to the next.
        drop: the probability that two of a patch's three colours are dropped.
        primitives: how many of AutoAugment's primitives change each patch, before its colours.

    >>> views = patch_grid(View(size=32), View(size=8, scale=None, padding=1), stride=4)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key).x.shape
    torch.Size([2, 7, 7, 3, 8, 8])
    """
    if each.scale is not None or 2 * each.padding >= each.size:
        raise ValueError(f"a patch's view has scale=None and a padding of less than half its size, not {each}")
    if not 0 <= drop <= 1:
        raise ValueError(f"colours are dropped with a probability from 0 to 1, not {drop:g}")
    if primitives < 0:
        raise ValueError(f"a patch is changed by 0 or more primitives, not {primitives}")
    if stride < 1 or crop.size < each.size + stride:
        raise ValueError(
            f"patches of {each.size} px, {stride} px apart, do not fit twice into a view of {crop.size} px; "
            "take a smaller --patch or --stride"
        )
    return PatchGrid((replace(crop, normalise=None),), each, stride, drop, primitives)
