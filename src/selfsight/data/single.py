r"""A whole training set from one photograph: ``--data single:PHOTO.jpg``.

Asano, Rupprecht, Vedaldi, "A critical analysis of self-supervision, or what we can learn from a single image", ICLR
2020, arXiv 1904.13132. Self-supervised methods learn from such a set the first layers that they learn from millions of
images, and of the deeper ones a part.

Each image of the set, by its number alone: a square window of half the photograph's shorter side, anywhere; of that a
crop of 1/500 to all of the area (uniform), with a ratio of sides between 3/4 and 4/3 (log-uniform), resized to a square
of :math:`\lfloor\sqrt2 s\rfloor` pixels, bicubic; a rotation within ±30° and a shear within ±30°, bilinear; the central
:math:`s` pixels; with probability 0.5 brightness, contrast and saturation within ±40 %, hue within ±0.1, in any order.

**Differences** from the official generator (yukimasano/single_img_pretraining): it writes JPEG files once, whose
artefacts a task may exploit, and here an image is made when it is read; where a crop would leave its window it draws
again, here too; what rotation and shear bring in from outside is black there and mirrored here, since black corners
tell the angle. Up to 96 px there are 50,000 images of the size that training takes (the authors' later
single-img-extrapolating, arXiv 2112.00725), above 1,281,167 of 8/7 of it: 256 for 224, as in the paper.
"""

import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torchvision.transforms import functional

from selfsight.data.cache import digest
from selfsight.data.decoding import decode, fit_channels
from selfsight.data.protocol import DataError, Unreadable, one_by_one
from selfsight.keyed import words
from selfsight.sizes import SMALL

VERSION = 1
"""Counts changes of what the crops look like; caches of decoded images go by it."""

WINDOW, AREA, RATIO, TURN, SHEAR = 0.5, (1 / 500, 1.0), (3 / 4, 4 / 3), 30.0, 30.0
JITTER, HUE, JITTERED = 0.4, 0.1, 0.5
MANY, FEW = 1_281_167, 50_000
_LEAST = 16
"""The least window in pixels: of one of 16, a crop of 1/500 shows less than a pixel."""


class Single:
    """Crops of one photograph as a ``Source`` of unlabelled images of ``size`` pixels.

    The photograph is decoded once in every process and kept; nothing of it travels to workers. Raises ``DataError``
    where the file cannot be read or is smaller than 32 px.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: Path, *, size: int, channels: int | None = None, n: int | None = None) -> None:
        self.path, self.name = path.resolve(), f"single {path.name}"
        self.size, self.channels = size, channels or 3
        self.labels: np.ndarray | None = None
        self.native: tuple[int, int, int] | None = (self.channels, size, size)
        self._n = n or (FEW if size <= SMALL else MANY)
        self._photograph = self._read()
        held = (VERSION, size, self._n, self.channels, self._photograph.size)
        self.fingerprint = digest("single", self._photograph.tobytes(), repr(held))

    def _read(self) -> Image.Image:
        try:
            pixels = decode(self.path)
        except Unreadable as error:
            raise DataError(f"{self.path} {error}; single: needs one photograph") from None
        height, width = pixels.shape[1:]
        if min(height, width) * WINDOW < _LEAST:
            raise DataError(f"{self.path} is {width} x {height} px; single: needs at least {_LEAST / WINDOW:g} a side")
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_photograph"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._photograph = self._read()

    def __len__(self) -> int:
        return self._n

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """The crop of that number."""
        position = operator.index(position)
        if not 0 <= position < self._n:
            raise IndexError(f"position {position} of {self._n} images")
        drawn = _uniforms(position, "single view", 11)
        side = math.floor(math.sqrt(2) * self.size)
        crop = self._photograph.resize((side, side), Image.Resampling.BICUBIC, box=self.box(position))
        image = _jittered(_turned(crop, self.size, drawn[0], drawn[1]), drawn[2:])
        return fit_channels(np.asarray(image).transpose(2, 0, 1), self.channels)

    def box(self, position: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the crop in the photograph, in pixels, before it is turned."""
        width, height = self._photograph.size
        window = WINDOW * min(width, height)
        u, v = _uniforms(position, "single window", 2)
        left, top = u * (width - window), v * (height - window)
        for attempt in range(1 << 16):
            area, ratio, u, v = _uniforms(position, f"single crop {attempt}", 4)
            area = AREA[0] + area * (AREA[1] - AREA[0])
            ratio = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= 1 and h <= 1:  # no central crop stands in: the centre would be seen too often
                left, top = left + u * (1 - w) * window, top + v * (1 - h) * window
                return left, top, left + w * window, top + h * window
        raise AssertionError("a crop fits with probability 0.87 at each of 65,536 attempts")

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """The crops of those numbers."""
        return one_by_one(self.read, positions)

    def where(self, position: int) -> str:
        """The photograph's name and the crop's number."""
        return f"{self.path.name}[{position}]"


def _uniforms(position: int, stream: str, n: int) -> list[float]:
    drawn = words(0, np.zeros(1, dtype=np.int64), np.array([position]), stream, n)[0]
    return (drawn * 2.0**-32).tolist()


def _turned(image: Image.Image, size: int, turn: float, shear: float) -> Image.Image:
    """The central ``size`` pixels of ``image``, rotated and then sheared along x, mirrored beyond its border."""
    angle, slope = (math.radians((2 * u - 1) * most) for u, most in ((turn, TURN), (shear, SHEAR)))
    margin = size // 2  # the farthest point seen lies 1.08 of the size from the centre, the border 0.7
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    centre, half = padded.shape[0] / 2, size / 2
    # where a point of the result, seen from its centre, lies: torchvision's shear and rotation, inverted
    cos, sin, tan = math.cos(angle), math.sin(angle), math.tan(slope)
    a, b, d, e = cos - sin * tan, sin + cos * tan, -sin, cos
    across, down = centre - (a + b) * half, centre - (d + e) * half
    return Image.fromarray(padded).transform(
        (size, size), Image.Transform.AFFINE, (a, b, across, d, e, down), Image.Resampling.BILINEAR
    )


def _jittered(image: Image.Image, drawn: list[float]) -> Image.Image:
    """torchvision's colour jitter, its four changes in a drawn order, with probability ``JITTERED``."""
    chance, *rest = drawn
    if chance >= JITTERED:
        return image
    factors, order = rest[:4], np.argsort(rest[4:8])
    by: Any = functional  # whose annotations know tensors alone
    changes = (by.adjust_brightness, by.adjust_contrast, by.adjust_saturation)
    for which in order.tolist():
        signed = 2 * factors[which] - 1
        image = by.adjust_hue(image, HUE * signed) if which == 3 else changes[which](image, 1 + JITTER * signed)
    return image
