"""The four overlapping quadrants of each image, each with a crop and colours of its own: a jigsaw's pieces."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from selfsight.batches import Pieces
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline, PlainView, one_view, plain_view
from selfsight.views.protocol import Cuts, Plan
from selfsight.views.view import DRAWS, View

PIECES = 4


def quadrants(images: Shaped[Tensor, "... h w"], cross: float) -> list[Shaped[Tensor, "... q r"]]:
    """Quadrants in row-major order, each of which reaches ``cross`` of the image's side beyond its middle.

    >>> [q.tolist() for q in quadrants(torch.arange(4, dtype=torch.uint8).expand(1, 4), cross=0.25)][:2]
    [[[0, 1, 2]], [[1, 2, 3]]]
    """
    height, width = images.shape[-2:]
    h, w = (max(1, round((0.5 + cross) * side)) for side in (height, width))
    return [images[..., top : top + h, left : left + w] for top in (0, height - h) for left in (0, width - w)]


@dataclass(frozen=True)
class Quadrants(Pipeline[Pieces]):
    """``pieces_of`` builds it; ``views`` has one view, that of a piece."""

    cross: float
    shuffle: int

    def plan(self, key: Key) -> Plan:
        return {
            "pieces": uniforms(key, "pieces", PIECES * DRAWS),
            "shuffle": uniforms(key, "shuffle", self.shuffle),
        }

    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[Shaped[Tensor, "b ..."]]:
        every = [quadrant for image in images for quadrant in quadrants(image, self.cross)]
        (stack,) = one_view(self.views[0]).cut(every, self._by_piece(plan))
        return [stack[:, 0].unflatten(0, (len(images), PIECES))]

    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> Pieces:
        if isinstance(images, Tensor):
            every = torch.stack(quadrants(images, self.cross), dim=1).flatten(0, 1)
        else:
            every = [images[0].flatten(0, 1)[:, None]]
        return super().render(every, {**plan, **self._by_piece(plan)}, key)

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> Pieces:
        shuffle = plan["shuffle"].to(x[0].device, non_blocking=True)
        return Pieces(x[0].unflatten(0, (-1, PIECES)), shuffle, index)

    def _by_piece(self, plan: Plan) -> Plan:
        """The numbers of all pieces, as one view of four times as many images."""
        return {"view0": plan["pieces"].unflatten(1, (PIECES, -1)).flatten(0, 1)}

    def describe(self) -> str:
        """What is cut out of what, and what happens to it."""
        share = 0.5 + self.cross
        return f"four quadrants, {share:g} of each side; of each {self.views[0].describe()}; four images to a montage"

    @property
    def plain(self) -> PlainView:
        """The evaluation view: the whole image, as large as a montage."""
        piece = self.views[0]
        return plain_view(2 * piece.size, piece.normalise, interpolation=piece.interpolation)


def pieces_of(view: View, *, cross: float, shuffle: int) -> Quadrants:
    """Four pieces of each image.

    Args:
        view: what becomes of each quadrant; its size is that of a piece.
        cross: how far a quadrant reaches beyond the middle, in shares of the side: from 0 to a half.
        shuffle: how many numbers an image brings to the shuffle of its batch.

    >>> views = pieces_of(View(size=16), cross=0.3, shuffle=10)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> views.render(torch.zeros(2, 3, 40, 60, dtype=torch.uint8), views.plan(key), key).x.shape
    torch.Size([2, 4, 3, 16, 16])
    """
    if not 0 <= cross <= 0.5:
        raise ValueError(f"--cross is {cross:g}; a quadrant reaches from 0 to 0.5 of the side beyond the middle")
    return Quadrants((view,), cross, shuffle)
