"""Exemplar-CNN's patches: one seed in each image, and for every draw a transform of it, cut from the image itself.

The seed depends on the image and on its index, not on the epoch: it is what the surrogate class is made of. What is
drawn anew each epoch is the transform. Corners of a turned patch show what the image has there, never padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from selfsight.batches import Exemplars
from selfsight.keyed import Key, uniforms
from selfsight.views import geometry, recolour
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Cuts, Plan
from selfsight.views.render import normalise_
from selfsight.views.seeds import Squares, corners, moved, seeds, turning, upright
from selfsight.views.view import Normalise, View

_MOVES = 4
"""Numbers for one transform's place: down, right, scale and angle."""


@dataclass(frozen=True)
class ExemplarPatches(Pipeline[Exemplars]):
    """``exemplars`` builds it; ``views`` has one view, which says size and normalisation."""

    sides: tuple[float, float]
    translation: float
    scale: tuple[float, float]
    degrees: float
    colours: bool

    def plan(self, key: Key) -> Plan:
        for_ever = key._replace(epoch=torch.zeros_like(key.epoch))
        drawn = uniforms(key, "transform", _MOVES + recolour.DRAWS)
        return {"seed": uniforms(for_ever, "seed", 2), "move": drawn[:, :_MOVES], "colours": drawn[:, _MOVES:]}

    @property
    def within(self) -> int:
        """Pixels of the upright box that is resized before the patch is turned in it: as fine as the patch."""
        turn = math.radians(min(self.degrees, 45))
        return math.ceil(self.views[0].size * (math.cos(turn) + math.sin(turn)))

    def squares(self, images: UInt8[Tensor, "b c h w"], plan: Plan) -> Squares:
        """Where each patch lies in its image."""
        return moved(
            seeds(images, plan["seed"], self.sides),
            plan["move"],
            (images.shape[2], images.shape[3]),
            translation=self.translation,
            scale=self.scale,
            degrees=self.degrees,
        )

    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[Shaped[Tensor, "b ..."]]:
        """The upright box round each patch; and behind it how the patch lies in its box, and in its image."""
        stack = torch.empty(len(images), 1, len(images[0]), self.within, self.within, dtype=torch.uint8)
        turns, places = torch.empty(len(images), 2, 3), torch.empty(len(images), 4, 2)
        for i, image in enumerate(images):
            size = image.shape[1], image.shape[2]
            square = self.squares(image[None], {name: u[i : i + 1] for name, u in plan.items()})
            box = upright(square, size)
            stack[i, 0] = geometry.cut(image, box, self.within, "bilinear")
            turns[i], places[i] = turning(square, box)[0], corners(square, size)[0]
        return [stack, turns, places]

    @torch.no_grad()
    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> Exemplars:
        """Turns each patch in its box, recolours it and normalises it."""
        if isinstance(images, Tensor):
            size = images.shape[2], images.shape[3]
            square = self.squares(images, plan)
            box = upright(square, size)
            rows = torch.arange(len(images), device=images.device)
            x = geometry.resample(images, rows, box, self.within, "bilinear").transpose(0, 1)
            turn, places = turning(square, box), corners(square, size)
        else:
            stack, turn, places = images
            x = stack[:, 0] * (1 / 255)
        with torch.autocast(x.device.type, enabled=False):
            x = self.turned(x, turn.to(x.device, non_blocking=True)).transpose(0, 1).contiguous()
            x = recolour.recolour(x, plan["colours"]) if self.colours else x
            x = normalise_(x, self.views[0].normalise).transpose(0, 1).contiguous()
        index = key.index.to(x.device, non_blocking=True)
        return self.assemble([x, places.to(x.device, non_blocking=True)], plan, index)

    def turned(self, x: Float[Tensor, "b c m m"], turn: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c s s"]:
        """Each patch out of its box. Outermost samples lie up to half a pixel out of the box's: they repeat it."""
        size = self.views[0].size
        grid = F.affine_grid(turn, [len(x), x.shape[1], size, size], align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> Exemplars:
        return Exemplars(x[0], x[1], index)

    def describe(self) -> str:
        """The seed and its transforms in one line."""
        colours = ", contrast, saturation, value and hue" if self.colours else ""
        return (
            f"a patch of {self.sides[0]:.2g} to {self.sides[1]:.2g} of the short side where gradients are large, the "
            f"same in every epoch: moved by up to {self.translation:g} of its side, scaled {self.scale[0]:g} to "
            f"{self.scale[1]:g}, turned by up to {self.degrees:g} degrees, to {self.views[0].size} px{colours}"
            f"{', normalise' if self.views[0].normalise else ''}"
        )


def exemplars(
    size: int,
    *,
    sides: tuple[float, float] = (1 / 3, 2 / 3),
    translation: float = 0.2,
    scale: tuple[float, float] = (0.7, 1.4),
    degrees: float = 20.0,
    colours: bool = True,
    normalise: Normalise | None = None,
) -> ExemplarPatches:
    """Transforms of one patch of each image, by Exemplar-CNN's numbers (arXiv 1406.6909, section 2.1).

    Args:
        size: pixels of a rendered patch.
        sides: the seed's side, in shares of the image's short side.
        translation: by how much of its side a patch is moved along each axis, at most.
        scale: its side, in shares of the seed's.
        degrees: by how much it is turned either way, at most.
        colours: contrast, saturation, value and hue are changed too.
        normalise: the network's.

    >>> views = exemplars(32)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> views.render(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), views.plan(key), key).x.shape
    torch.Size([2, 3, 32, 32])
    """
    if not 0 < sides[0] <= sides[1] <= 1:
        raise ValueError(f"a seed's side is a share of the image's, in (0, 1], smaller number first, not {sides}")
    if not 0 < scale[0] <= scale[1] or translation < 0 or not 0 <= degrees <= 45:
        raise ValueError(f"no such transform: translation {translation}, scale {scale}, {degrees} degrees (0 to 45)")
    view = View(size=size, scale=None, flip=0.0, normalise=normalise)
    return ExemplarPatches((view,), sides, translation, scale, degrees, colours)
