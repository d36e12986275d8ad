"""Two views of each image together with where they lie in it: what pixel-level methods compare by.

A plan knows no image size and a box needs one, so the boxes are worked out where the images are: by ``cut`` in the
worker, which hands them on behind its stacks, and by ``render`` where whole images are rendered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from selfsight.batches import LocatedViews
from selfsight.keyed import Key
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Cuts, Plan
from selfsight.views.view import Boxes, View, boxes

_CORNERS = "corners"
"""What the boxes are called in the plan that ``assemble`` gets."""


def corners(
    box: Boxes, height: Int[Tensor, " b"] | Float[Tensor, " b"], width: Int[Tensor, " b"] | Float[Tensor, " b"]
) -> Float[Tensor, "b 4"]:
    """Left, top, right and bottom of each box in shares of its image, left and right exchanged where it is mirrored.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> corners(Boxes(10 * one, 0 * one, 20 * one, 30 * one, one > 0, closed=True), 40 * one, 60 * one)
    tensor([[0.5000, 0.2500, 0.0000, 0.7500]])
    """
    left, right = box.left / width, (box.left + box.width) / width
    top, bottom = box.top / height, (box.top + box.height) / height
    first, last = torch.where(box.flip, right, left), torch.where(box.flip, left, right)
    return torch.stack([first, top, last, bottom], dim=1).float()


@dataclass(frozen=True)
class _LocatedViews(Pipeline[LocatedViews]):
    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[Shaped[Tensor, "b ..."]]:
        height, width = (torch.tensor([image.shape[axis] for image in images]) for axis in (1, 2))
        return [*super().cut(images, plan), self._corners(plan, height, width)]

    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> LocatedViews:
        if isinstance(images, Tensor):
            height, width = (torch.full((len(images),), side) for side in images.shape[2:])
            located = self._corners(plan, height, width)
        else:
            *images, located = images
        return super().render(images, {**plan, _CORNERS: located}, key)

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> LocatedViews:
        first, second = plan[_CORNERS].to(x[0].device, non_blocking=True).unbind(1)
        return LocatedViews(x[0], x[1], first, second, index)

    def _corners(self, plan: Plan, height: Int[Tensor, " b"], width: Int[Tensor, " b"]) -> Float[Tensor, "b 2 4"]:
        drawn = (boxes(view, plan[f"view{v}"], height, width) for v, view in enumerate(self.views))
        return torch.stack([corners(box, height, width) for box in drawn], dim=1)


def located_views(first: View, second: View | None = None) -> Pipeline[LocatedViews]:
    """Two views of each image with their boxes: two independent draws of ``first``, or one of each.

    >>> views = located_views(View(size=32))
    >>> key = Key(seed=0, epoch=torch.zeros(4, dtype=torch.long), index=torch.arange(4))
    >>> batch = views.render(torch.zeros(4, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> batch.x1.shape, batch.box1.shape
    (torch.Size([4, 3, 32, 32]), torch.Size([4, 4]))
    """
    return _LocatedViews((first, second or first))
