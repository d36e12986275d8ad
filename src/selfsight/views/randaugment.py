"""RandAugment as Noisy Student has it, batched: a few of sixteen operations in a row, all at one strength.

Cubuk, Zoph, Shlens, Le, arXiv 1909.13719, in the form of google-research/noisystudent (aac52bf, ``randaugment.py``).
Strengths grow without an end with the magnitude: at 10 they are RandAugment's largest, and the paper's 27 is beyond
(contrast by a factor of 5, shifts by half of the image). What moves in from outside is grey.

**Differences** from that code: it draws for each operation a probability of 0.2 to 0.8, which it never uses, so every
operation that is chosen happens, here too. Its shifts and holes are so many pixels, here they are the same share of
the side: of 600 px on large images, the size of EfficientNet-B7. Its contrast blends with a brightness that counts
pixels instead of averaging them; here it is the image's mean. Strengths that mean more than eight bits or a threshold
above white leave an image as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.batches import Images
from selfsight.keyed import Key, uniforms
from selfsight.sizes import SMALL
from selfsight.views.colour import blend_
from selfsight.views.pipelines import Pipeline, PlainView
from selfsight.views.primitives import affine, auto_contrast, equalise, sharpen
from selfsight.views.protocol import Plan
from selfsight.views.render import normalise_
from selfsight.views.view import BRIGHTNESS, CONTRAST, SATURATION, Normalise, View

DRAWS = 4
"""Numbers in [0, 1) for one operation: which, to which side, and where (cutout alone minds)."""
_GREY = 128 / 255
_SHEAR, _TURN = 0.3, torch.pi / 6
_LARGE_SHIFT, _LARGE_HOLE = 100 / 600, 40 / 600
_SMALL_SHIFT = _SMALL_HOLE = 1 / 8
_FACTOR = 0.9  # of ``sharpen``, whose strength s means a factor of 1 + 0.9 s

Operation = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Of images ``c n h w`` in [0, 1], which it may change, signs ``n``, places ``n 2`` in [0, 1), and a strength."""


def operation(x: Float[Tensor, "c n h w"], u: Float[Tensor, "n 4"], strength: float) -> Float[Tensor, "c n h w"]:
    """Each image after the operation that its numbers choose; a ``strength`` of 1 is magnitude 10."""
    known = small_operations() if x.shape[-1] <= SMALL else OPERATIONS
    which = (u[:, 0].double() * len(known)).long()
    u = u.to(x.device)
    out = torch.empty_like(x)
    for k, change in enumerate(known.values()):
        rows = (which == k).nonzero()[:, 0].to(x.device)
        if len(rows):
            sign = torch.where(u[rows, 1] < 0.5, -1.0, 1.0).to(x.dtype)
            out.index_copy_(1, rows, change(x.index_select(1, rows), sign, u[rows, 2:].to(x.dtype), strength))
    return out


def cut_out(x: Tensor, half: float, at: Tensor) -> Tensor:
    """A grey square that reaches ``half`` of the side each way from its centre, as far as the image does."""
    size = x.shape[-1]
    centre = torch.floor(at * size)
    pixels = torch.arange(size, device=x.device)
    reach = int(half * size)
    rows, columns = (
        (pixels >= centre[:, axis, None] - reach) & (pixels < centre[:, axis, None] + reach) for axis in (0, 1)
    )
    return x.masked_fill(rows[:, :, None] & columns[:, None, :], _GREY)


def _enhance(which: int, x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    return blend_(x, torch.full_like(sign, 1.8 * strength + 0.1), torch.full_like(sign, which, dtype=torch.long))


def _sharpen(x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    return sharpen(x, torch.full_like(sign, (1.8 * strength - 0.9) / _FACTOR), at)


def _posterise(x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    unit = 2.0 ** max(8 - int(4 * strength), 0)
    return torch.floor((x * 255).round() / unit) * unit / 255


def _solarise(x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    return torch.where(x < int(256 * strength) / 255 - 1e-6, x, 1 - x)


def _solarise_add(x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    return torch.where(x < _GREY - 1e-6, (x + int(110 * strength) / 255).clamp_max(1), x)


def _rotate(x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    cos, sin = torch.cos(_TURN * strength * sign), torch.sin(_TURN * strength * sign)
    return affine(x, cos, -sin, 0, sin, cos, 0)


def _shift(axis: int, share: float) -> Operation:
    def change(x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
        moved = 2 * share * strength * sign  # the side is 2 long
        return affine(x, 1, 0, moved if axis == 0 else 0, 0, 1, moved if axis == 1 else 0)

    return change


def _hole(share: float, x: Tensor, sign: Tensor, at: Tensor, strength: float) -> Tensor:
    return cut_out(x, share * strength, at)


def _table(shift: float, hole: float) -> dict[str, Operation]:
    return {
        "auto-contrast": lambda x, sign, at, strength: auto_contrast(x, sign, at),
        "equalise": lambda x, sign, at, strength: equalise(x, sign, at),
        "invert": lambda x, sign, at, strength: 1 - x,
        "rotate": _rotate,
        "posterise": _posterise,
        "solarise": _solarise,
        "colour": partial(_enhance, SATURATION),
        "contrast": partial(_enhance, CONTRAST),
        "brightness": partial(_enhance, BRIGHTNESS),
        "sharpness": _sharpen,
        "shear x": lambda x, sign, at, strength: affine(x, 1, _SHEAR * strength * sign, 0, 0, 1, 0),
        "shear y": lambda x, sign, at, strength: affine(x, 1, 0, 0, _SHEAR * strength * sign, 1, 0),
        "translate x": _shift(0, shift),
        "translate y": _shift(1, shift),
        "solarise add": _solarise_add,
        "cutout": partial(_hole, hole),
    }


OPERATIONS: Mapping[str, Operation] = _table(_LARGE_SHIFT, _LARGE_HOLE)
_SMALL = _table(_SMALL_SHIFT, _SMALL_HOLE)


def small_operations() -> Mapping[str, Operation]:
    """Those of images of up to 96 px, whose shifts and holes are an eighth of the side."""
    return _SMALL


@dataclass(frozen=True)
class NoisyView(Pipeline[Images]):
    """``noisy_view`` builds it."""

    layers: int
    magnitude: float
    hole: float
    normalise: Normalise | None

    def plan(self, key: Key) -> Plan:
        """The crop's numbers, the operations', and where the hole is."""
        more = uniforms(key, "randaugment", DRAWS * self.layers + 2)
        return {**super().plan(key), "randaugment": more}

    @torch.no_grad()
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> Images:
        u = plan["randaugment"]
        with torch.autocast(x[0].device.type, enabled=False):
            image = x[0].transpose(0, 1)
            for layer in range(self.layers if self.magnitude else 0):
                image = operation(image, u[:, DRAWS * layer : DRAWS * (layer + 1)], self.magnitude / 10)
            if self.hole:
                image = cut_out(image, self.hole, u[:, -2:].to(image.device))
            image = normalise_(image.contiguous(), self.normalise).transpose(0, 1).contiguous()
        return Images(image, index)

    @property
    def plain(self) -> PlainView:
        """The evaluation view: without any noise, and normalised."""
        return replace(super().plain, normalise=self.normalise)

    def describe(self) -> str:
        """The crop and the noise."""
        noise = (
            f"{self.layers} of {len(OPERATIONS)} operations at magnitude {self.magnitude:g}" if self.magnitude else ""
        )
        hole = f"a hole of {2 * self.hole:.0%} of the side" if self.hole else ""
        parts = (super().describe(), noise, hole, "normalise" if self.normalise else "")
        return ", ".join(part for part in parts if part)


def noisy_view(view: View, *, layers: int = 2, magnitude: float = 27, hole: float = 0.0) -> NoisyView:
    """One view of each image under RandAugment; ``view`` says crop, flip and normalisation.

    Args:
        view: without colours of its own.
        layers: operations in a row.
        magnitude: their strength; 0 is none of them.
        hole: half the side of a grey square that every image gets besides, as a share of the image's: the official
            code's small images get one of a quarter.

    >>> views = noisy_view(View(size=32, scale=None, padding=4), magnitude=5, hole=0.25)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> views.render(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), views.plan(key), key).x.shape
    torch.Size([2, 3, 32, 32])
    """
    if layers < 0 or magnitude < 0 or not 0 <= hole < 1:
        raise ValueError(
            f"--magnitude is {magnitude:g}, operations {layers} and a hole of {hole:g}; none of them can be below 0, "
            "and a hole stays below the whole image"
        )
    return NoisyView((replace(view, normalise=None),), layers, magnitude, hole, view.normalise)
