"""AutoAugment's primitives (Cubuk et al., 2019, arXiv 1805.09501), batched: each sample its own, as strong as drawn.

All that change one image by itself: sample pairing is left out. Strengths are the paper's table 6, whose pixels count
in images of 331 px: here they are shares of the side. What moves in from outside, and what is cut out, is grey.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from selfsight.views.colour import blend_
from selfsight.views.view import BRIGHTNESS, CONTRAST, SATURATION

DRAWS = 4
"""Numbers in [0, 1) for one primitive: which, how strong, and where (cutout alone minds)."""
_GREY = 0.5
_SHEAR, _TURN, _SHIFT, _FACTOR, _HOLE = 0.3, math.pi / 6, 150 / 331, 0.9, 60 / 331

Primitive = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of images ``c n h w`` in [0, 1] (which it may change), strengths ``n`` in [-1, 1) and places ``n 2`` in [0, 1)."""


def primitive(x: Float[Tensor, "c n h w"], u: Float[Tensor, "n 4"]) -> Float[Tensor, "c n h w"]:
    """Each image after the primitive that its numbers choose."""
    which = (u[:, 0].double() * len(PRIMITIVES)).long()
    u = u.to(x.device)
    out = torch.empty_like(x)
    for k, change in enumerate(PRIMITIVES.values()):
        rows = (which == k).nonzero()[:, 0].to(x.device)
        if len(rows):
            out.index_copy_(1, rows, change(x.index_select(1, rows), 2 * u[rows, 1] - 1, u[rows, 2:]))
    return out


def affine(x: Tensor, *rows: Tensor | float) -> Tensor:
    """Images resampled at ``(a x + b y + c, d x + e y + f)``, in coordinates that span -1 to 1."""
    columns = [torch.as_tensor(entry, dtype=x.dtype, device=x.device).expand(x.shape[1]) for entry in rows]
    images = x.transpose(0, 1) - _GREY  # what lies outside is sampled as zero
    grid = F.affine_grid(torch.stack(columns, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).add_(_GREY).transpose(0, 1)


def auto_contrast(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    """Each channel stretched over the whole range."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-7), x)


def equalise(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    """Each channel's histogram of 256 levels made flat, by Pillow's rule; too few pixels leave it as it is."""
    levels = (x * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    highest = levels.amax(dim=2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, highest)) // 255
    below = counts.cumsum(dim=2) - counts
    table = ((below + step // 2) // step.clamp_min(1)).clamp(0, 255)
    return torch.where((step > 0)[..., None], table.gather(2, levels).view(x.shape) / 255, x)


def posterise(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    """Four to eight bits of each value."""
    bits = 4 + torch.floor(2.5 * (s + 1))
    unit = (2.0 ** (8 - bits))[:, None, None]
    return torch.floor((x * 255).round() / unit) * unit / 255


def sharpen(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    """Away from, or towards, the image smoothed by Pillow's 3x3 kernel; the border stays."""
    kernel = x.new_ones(1, 1, 3, 3)
    kernel[..., 1, 1] = 5
    smooth = x.clone()
    images = x.flatten(0, 1)[:, None]
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13)[:, 0].unflatten(0, x.shape[:2])
    return torch.lerp(smooth, x, (1 + _FACTOR * s)[:, None, None]).clamp_(0, 1)


def cut_out(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    """A square hole of up to ``_HOLE`` of the side."""
    size = x.shape[-1]
    half = (_HOLE * size * (s + 1) / 4)[:, None]
    pixels = torch.arange(size, device=x.device) + 0.5
    rows, columns = ((pixels - size * at[:, axis, None]).abs() < half for axis in (0, 1))
    return x.masked_fill(rows[:, :, None] & columns[:, None, :], _GREY)


def _blend(operation: int) -> Primitive:
    def change(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
        return blend_(x, 1 + _FACTOR * s, torch.full_like(s, operation, dtype=torch.long))

    return change


def _rotate(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    cos, sin = torch.cos(_TURN * s), torch.sin(_TURN * s)
    return affine(x, cos, -sin, 0, sin, cos, 0)


def _solarise(x: Tensor, s: Tensor, at: Tensor) -> Tensor:
    return torch.where(x >= ((s + 1) / 2)[:, None, None], 1 - x, x)


PRIMITIVES: dict[str, Primitive] = {
    "shear x": lambda x, s, at: affine(x, 1, _SHEAR * s, 0, 0, 1, 0),
    "shear y": lambda x, s, at: affine(x, 1, 0, 0, _SHEAR * s, 1, 0),
    "translate x": lambda x, s, at: affine(x, 1, 0, 2 * _SHIFT * s, 0, 1, 0),
    "translate y": lambda x, s, at: affine(x, 1, 0, 0, 0, 1, 2 * _SHIFT * s),
    "rotate": _rotate,
    "auto-contrast": auto_contrast,
    "invert": lambda x, s, at: 1 - x,
    "equalise": equalise,
    "solarise": _solarise,
    "posterise": posterise,
    "contrast": _blend(CONTRAST),
    "colour": _blend(SATURATION),
    "brightness": _blend(BRIGHTNESS),
    "sharpness": sharpen,
    "cutout": cut_out,
}
