"""Where Exemplar-CNN's patches lie: a seed for each image where gradients are large, and a moved square for each draw.

All of it is whole numbers until the square is moved, so that an image has one seed on any device, in any process.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfsight.views.view import Boxes

_FINEST = 128
"""Gradients of images whose short side has twice as many pixels or more are taken on a coarser grid of pixels."""


class Seeds(NamedTuple):
    """Squares of whole pixels, one for each image."""

    top: Int[Tensor, " b"]
    left: Int[Tensor, " b"]
    side: Int[Tensor, " b"]


class Squares(NamedTuple):
    """Squares that may be turned: centre, side and angle (radians, clockwise), in pixels of the image."""

    y: Float[Tensor, " b"]
    x: Float[Tensor, " b"]
    side: Float[Tensor, " b"]
    angle: Float[Tensor, " b"]

    @property
    def reach(self) -> Float[Tensor, " b"]:
        """The side of the upright square that holds each."""
        return self.side * (self.angle.cos().abs() + self.angle.sin().abs())


def energy(images: UInt8[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
    """The squared gradient of the sum of channels at each pixel, by central differences; at borders one-sided."""
    grey = images.sum(dim=1, dtype=torch.int64)
    total = torch.zeros_like(grey)
    for axis in (1, 2):
        n = grey.shape[axis]
        at = torch.arange(n, device=grey.device)
        step = grey.index_select(axis, (at + 1).clamp_max(n - 1)) - grey.index_select(axis, (at - 1).clamp_min(0))
        total += step.square()
    return total


def seeds(images: UInt8[Tensor, "b c h w"], u: Float[Tensor, "b 2"], sides: tuple[float, float]) -> Seeds:
    """A square in each image: its side drawn from ``sides``, shares of the short side (log-uniform), its place in
    proportion to the mean squared gradient within it.

    Exact, not by rejection: of all places the one is taken at which the running sum of their energies passes the drawn
    share of the whole.
    """
    coarse = max(1, min(images.shape[2:]) // _FINEST)
    h, w = images.shape[2] // coarse, images.shape[3] // coarse
    small, b = images[:, :, : h * coarse : coarse, : w * coarse : coarse], len(images)
    share = sides[0] * (sides[1] / sides[0]) ** u[:, 0].double()
    side = (min(h, w) * share).round().long().clamp(1, min(h, w)).to(images.device, non_blocking=True)
    sums = torch.nn.functional.pad(energy(small).cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows, columns = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    low = (rows + side[:, None]).clamp_max(h)[:, :, None].expand(b, h, w + 1)
    far = (columns + side[:, None]).clamp_max(w)[:, None, :].expand(b, h, w)
    strips = sums.gather(1, low) - sums[:, :h]
    windows = strips.gather(2, far) - strips[:, :, :w] + 1  # where nothing changes all places are equal
    fits = (rows + side[:, None] <= h)[:, :, None] & (columns + side[:, None] <= w)[:, None, :]
    running = (windows * fits).flatten(1).cumsum(1)
    drawn = (u[:, 1].double().to(images.device, non_blocking=True) * running[:, -1]).long()
    place = torch.searchsorted(running, drawn[:, None], right=True)[:, 0]
    return Seeds(place // w * coarse, place % w * coarse, side * coarse)


def moved(
    seed: Seeds,
    u: Float[Tensor, "b 4"],
    size: tuple[int, int],
    *,
    translation: float,
    scale: tuple[float, float],
    degrees: float,
) -> Squares:
    """Each seed moved, scaled and turned, and then moved back, where it has to be, until it lies within the image.

    So nothing is ever padded: a border would tell at a glance where a patch was cut. Where a square is too large for
    its image it is shrunk to the largest that fits.
    """
    height, width = size
    top, left, side = (part.double() for part in seed)
    down, right, larger, turn = u.double().to(top.device, non_blocking=True).unbind(1)
    angle = (2 * turn - 1) * math.radians(degrees)
    length = side * scale[0] * (scale[1] / scale[0]) ** larger
    length = torch.minimum(length, min(height, width) / (angle.cos() + angle.sin().abs()))
    square = Squares(torch.zeros_like(length), torch.zeros_like(length), length, angle)
    half = square.reach / 2
    y = top + side / 2 + (2 * down - 1) * translation * side
    x = left + side / 2 + (2 * right - 1) * translation * side
    y = torch.minimum(torch.maximum(y, half), height - half)
    x = torch.minimum(torch.maximum(x, half), width - half)
    return square._replace(y=y, x=x)


def upright(square: Squares, size: tuple[int, int]) -> Boxes:
    """The smallest box of whole pixels that holds each square."""
    half = square.reach / 2 - 1e-9
    edges = []
    for centre, most in ((square.y, size[0]), (square.x, size[1])):
        first = (centre - half).floor().clamp(0, most - 1)
        last = torch.maximum((centre + half).ceil().clamp(1, most), first + 1)
        edges.append((first, last - first))
    (top, height), (left, width) = edges
    return Boxes(top, left, height, width, torch.zeros_like(top, dtype=torch.bool), closed=True)


def turning(square: Squares, box: Boxes) -> Float[Tensor, "b 2 3"]:
    """The affine maps from a patch to its box, both from -1 to 1 along each axis (``affine_grid``'s)."""
    cos, sin = square.angle.cos() * square.side, square.angle.sin() * square.side
    across = torch.stack([cos, -sin, 2 * (square.x - box.left) - box.width], dim=1) / box.width[:, None]
    down = torch.stack([sin, cos, 2 * (square.y - box.top) - box.height], dim=1) / box.height[:, None]
    return torch.stack([across, down], dim=1).float()


def corners(square: Squares, size: tuple[int, int]) -> Float[Tensor, "b 4 2"]:
    """The four corners, clockwise from the patch's own top left, as x and y in shares of the image's sides."""
    cos, sin = square.angle.cos() * square.side / 2, square.angle.sin() * square.side / 2
    points = [
        torch.stack([square.x + i * cos - j * sin, square.y + i * sin + j * cos], dim=1)
        for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    sides = torch.tensor([size[1], size[0]], dtype=torch.float64).to(square.x.device, non_blocking=True)
    return (torch.stack(points, dim=1) / sides).clamp(0, 1).float()
