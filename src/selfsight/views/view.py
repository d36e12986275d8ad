"""What one view is (``View``) and how its uniform numbers become boxes and colours (``resolve``).

A plan holds ``DRAWS`` uniform numbers a view, in the fixed order of the slices below. They know no image size; once the
size is known ``resolve`` turns them into parameters by torchvision's rules: a crop is the first of ten attempts that
fits, and the largest central one where none does.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]
Step = Literal["jitter", "grey", "blur", "solarise"]
Greyscale = Literal["luma", "lightness"]
"""What grey shows: ITU-R 601's luma, as torchvision, or CIE Lab's lightness."""

ATTEMPTS = 10
"""Crops tried before the central one is taken, as torchvision's ``RandomResizedCrop``."""
DRAWS = 2 * ATTEMPTS + 13
_AREA, _RATIO = slice(0, 2 * ATTEMPTS, 2), slice(1, 2 * ATTEMPTS, 2)
_TOP, _LEFT, FLIP, _JITTER = range(2 * ATTEMPTS, 2 * ATTEMPTS + 4)
_FACTORS = slice(_JITTER + 1, _JITTER + 5)
_ORDER, _GREY, _BLUR, _SIGMA, _SOLARISE = range(_JITTER + 5, _JITTER + 10)
_ORDERS = torch.tensor(list(itertools.permutations(range(4))))

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Normalise(NamedTuple):
    """Per-channel ``(x - mean) / std`` of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, channels: int) -> "Normalise":
        """The same for ``channels`` channels; where the numbers differ, every channel gets the averages."""
        if len(self.mean) == channels:
            return self
        mean, std = sum(self.mean) / len(self.mean), sum(self.std) / len(self.std)
        return Normalise((mean,) * channels, (std,) * channels)


IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Jitter:
    """Colour jitter in random order, with probability ``p``: factors U(max(0, 1 - v), 1 + v), hue U(-v, v) turns."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 1.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError(f"jitter strengths must be at least 0 and hue at most 0.5, not {self}")


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with probability ``p`` and standard deviation U(sigma) in pixels of the view.

    ``kernel`` is the number of taps (odd); None keeps all that matter, up to four standard deviations.
    """

    p: float
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: int | None = None

    def __post_init__(self) -> None:
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            raise ValueError(f"blur kernel must be odd, not {self.kernel}; take {self.kernel + 1}")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"blur sigma must be a range of positive numbers, not {self.sigma}")

    @property
    def radius(self) -> int:
        return math.ceil(4 * self.sigma[1]) if self.kernel is None else self.kernel // 2


@dataclass(frozen=True)
class Solarise:
    """Inverts, with probability ``p``, what is at least ``threshold`` (of images in [0, 1])."""

    p: float
    threshold: float = 128 / 255


@dataclass(frozen=True, kw_only=True)
class View:
    """One view: crop, flip, then colour, blur and solarise in ``order``, then normalise.

    ``scale`` is the crop's share of the image's area and ``ratio`` the range of its width over its height, drawn log-
    uniformly. With ``of_square`` it is a share of the largest square that fits, so that wide images leave as much
    to chance as square ones. ``scale=None`` takes the whole image, resized to ``size``, zero-padded by ``padding``
    on each side and cropped back at random (CIFAR's crop). Images with other than three channels have no hue,
    saturation or grey: these are left out, contrast is taken about the mean of all channels, and ``normalise``
    applies its averages.

    The flip is rendered with the crop. Where a paper flips last the distribution is the same, since colour, a symmetric
    blur with reflected borders and solarise all commute with it.

    >>> View(size=32, scale=(0.2, 1.0), grey=0.2).describe()
    'crop 0.2-1 of the area to 32 px (bilinear), flip 0.5, grey 0.2, normalise'
    """

    size: int
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    of_square: bool = False
    interpolation: Interpolation = "bilinear"
    padding: int = 0
    flip: float = 0.5
    jitter: Jitter | None = None
    grey: float = 0.0
    greyscale: Greyscale = "luma"
    blur: Blur | None = None
    solarise: Solarise | None = None
    normalise: Normalise | None = IMAGENET
    order: tuple[Step, ...] = ("jitter", "grey", "blur", "solarise")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a view's size must be at least 1 px, not {self.size}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop scale must lie in (0, 1], smaller number first, not {self.scale}")
        if self.scale is not None and self.padding:
            raise ValueError(f"padding={self.padding} goes with scale=None: a view crops by area or by padding")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop ratio must be a range of positive numbers, not {self.ratio}")
        if sorted(self.order) != ["blur", "grey", "jitter", "solarise"]:
            raise ValueError(f"order must name jitter, grey, blur and solarise once each, not {self.order}")

    def describe(self) -> str:
        """The view in one line, steps in their order; steps that never happen are left out."""
        if self.scale is not None:
            whole = "largest square" if self.of_square else "area"
            geometry = (
                f"crop {self.scale[0]:g}-{self.scale[1]:g} of the {whole} to {self.size} px ({self.interpolation})"
            )
        elif self.padding:
            geometry = f"whole image at {self.size} px, padded by {self.padding} and cropped back"
        else:
            geometry = f"whole image at {self.size} px ({self.interpolation})"
        parts = [geometry, f"flip {self.flip:g}" if self.flip else ""]
        j, blur, solarise = self.jitter, self.blur, self.solarise
        words = {
            "jitter": j and f"jitter ({j.brightness:g}, {j.contrast:g}, {j.saturation:g}, {j.hue:g}) {j.p:g}",
            "grey": f"{'grey' if self.greyscale == 'luma' else self.greyscale} {self.grey:g}" if self.grey else "",
            "blur": blur and f"blur {blur.p:g} (sigma {blur.sigma[0]:g}-{blur.sigma[1]:g} px)",
            "solarise": solarise and f"solarise {solarise.p:g}",
        }
        parts += [words[step] or "" for step in self.order]
        parts.append("normalise" if self.normalise else "")
        return ", ".join(part for part in parts if part)


class Boxes(NamedTuple):
    """What is cut of each image, in its pixels. ``closed``: what lies outside its box a view does not see when it
    resizes (crop, then resize); otherwise it sees the whole image, and zeros beyond it."""

    top: Float[Tensor, " b"]
    left: Float[Tensor, " b"]
    height: Float[Tensor, " b"]
    width: Float[Tensor, " b"]
    flip: Bool[Tensor, " b"]
    closed: bool

    def each(self, change: Callable[[Tensor], Tensor]) -> "Boxes":
        """The same with every tensor changed."""
        return Boxes._make([*map(change, self[:5]), self.closed])


class Colours(NamedTuple):
    """What happens to each image's pixels: ``order[:, k]`` is the jitter's k-th operation, -1 where there is none."""

    factors: Float[Tensor, "b 4"]
    order: Int[Tensor, "b 4"]
    grey: Bool[Tensor, " b"]
    blur: Bool[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    solarise: Bool[Tensor, " b"]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Colours":
        """The same with every tensor changed."""
        return Colours._make(map(change, self))


def boxes(
    view: View, u: Float[Tensor, "b n"], height: int | Int[Tensor, " b"], width: int | Int[Tensor, " b"]
) -> Boxes:
    """The boxes that the uniform numbers ``u`` mean on images of ``height`` by ``width`` pixels, all or each."""
    flip = u[:, FLIP] < view.flip
    u = u.double()
    height, width = (torch.as_tensor(side, dtype=torch.float64).expand(len(u)) for side in (height, width))
    if view.scale is None:
        down, right = (torch.floor(u[:, k] * (2 * view.padding + 1)) - view.padding for k in (_TOP, _LEFT))
        whole = torch.ones_like(down)
        return Boxes(
            down * height / view.size, right * width / view.size, whole * height, whole * width, flip, closed=False
        )
    whole = torch.minimum(height, width) ** 2 if view.of_square else height * width
    area = whole[:, None] * (view.scale[0] + u[:, _AREA] * (view.scale[1] - view.scale[0]))
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    ratio = torch.exp(low + u[:, _RATIO] * (high - low))
    w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (w >= 1) & (w <= width[:, None]) & (h >= 1) & (h <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    central_h, central_w = _central(height, width, view.ratio)
    h = torch.where(found, h.gather(1, first)[:, 0], central_h)
    w = torch.where(found, w.gather(1, first)[:, 0], central_w)
    top = torch.where(found, torch.floor(u[:, _TOP] * (height - h + 1)), torch.floor((height - central_h) / 2))
    left = torch.where(found, torch.floor(u[:, _LEFT] * (width - w + 1)), torch.floor((width - central_w) / 2))
    return Boxes(top, left, h, w, flip, closed=True)


def _central(
    height: Float[Tensor, " b"], width: Float[Tensor, " b"], ratio: tuple[float, float]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The largest central box whose ratio is allowed."""
    narrow, wide = width / height < ratio[0], width / height > ratio[1]
    tall = torch.where(narrow, torch.round(width / ratio[0]), height)
    return tall, torch.where(wide, torch.round(height * ratio[1]), width)


def colours(view: View, u: Float[Tensor, "b n"]) -> Colours:
    """What the uniform numbers ``u`` mean for the pixels; independent of any size."""
    j, blur, solarise = view.jitter, view.blur, view.solarise
    factors, order = torch.ones(len(u), 4), torch.full((len(u), 4), -1)
    factors[:, HUE] = 0
    if j is not None:
        strength = torch.tensor([j.brightness, j.contrast, j.saturation, j.hue])
        low = torch.cat([(1 - strength[:3]).clamp_min(0), -strength[3:]])
        high = torch.cat([1 + strength[:3], strength[3:]])
        happens = (u[:, _JITTER] < j.p)[:, None]
        factors = torch.where(happens, low + u[:, _FACTORS] * (high - low), factors)
        order = torch.where(happens, _ORDERS[(u[:, _ORDER].double() * 24).long()], order)
    low, high = blur.sigma if blur is not None else (1.0, 1.0)
    return Colours(
        factors,
        order,
        u[:, _GREY] < view.grey,
        u[:, _BLUR] < (blur.p if blur is not None else 0),
        low + u[:, _SIGMA] * (high - low),
        u[:, _SOLARISE] < (solarise.p if solarise is not None else 0),
    )


def resolve(view: View, u: Float[Tensor, "b n"], height: int, width: int) -> tuple[Boxes, Colours]:
    """All parameters that ``u``, one view's part of a plan, means on images of ``height`` by ``width`` pixels."""
    return boxes(view, u, height, width), colours(view, u)
