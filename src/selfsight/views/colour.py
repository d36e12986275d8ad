"""Colour operations on images in [0, 1], channels first (``c n h w``), in place and by sample.

Brightness, contrast and saturation are one operation, ``f x + (1 - f) o``, with o black, the image's mean grey, or each
pixel's grey. Hue turns each pixel on the colour hexagon, which keeps its largest and smallest channel; the angle is
written without branches. All clamp to [0, 1] after each operation, as torchvision does.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.lab import lightness
from selfsight.views.view import BRIGHTNESS, CONTRAST, HUE, SATURATION, Greyscale

_LUMA = (0.2989, 0.587, 0.114)


def luma(x: Float[Tensor, "c n h w"]) -> Float[Tensor, "n h w"]:
    """Each pixel's grey: ITU-R 601 for three channels (torchvision's digits), else the mean of the channels."""
    shares = _shares(len(x))
    grey = x[0] * shares[0]
    for plane, share in zip(x[1:], shares[1:], strict=True):
        grey.add_(plane, alpha=share)
    return grey


def _shares(channels: int) -> tuple[float, ...]:
    return _LUMA if channels == 3 else (1 / channels,) * channels


def blend_(x: Float[Tensor, "c n h w"], factor: Float[Tensor, " n"], operation: Int[Tensor, " n"]) -> Tensor:
    """Brightness, contrast or saturation by ``factor``, whichever ``operation`` says for each sample."""
    rest = 1 - factor
    other = luma(x)
    mean = other.mean((1, 2)) * rest * (operation == CONTRAST)
    if len(x) == 3:
        other.mul_((rest * (operation == SATURATION))[:, None, None]).add_(mean[:, None, None])
    else:
        factor = torch.where(operation == SATURATION, 1, factor)
        other = mean[:, None, None].expand_as(other).contiguous()
    return torch.addcmul(other, x, factor[:, None, None], out=x).clamp_(0, 1)


def turn_hue_(x: Float[Tensor, "3 n h w"], turns: Float[Tensor, " n"] | float) -> Tensor:
    """Turns the hue by ``turns`` of the circle, keeping value and saturation.

    With red at 0, green at 2 and blue at 4 of 6, the angle from red is ``1 + (g + b - r - min) / chroma``, towards
    green where g >= b. A channel is then ``min + chroma * clamp(2 - d, 0, 1)``, d the distance from the angle to its
    own.
    """
    r, g, b = x
    largest = torch.maximum(r, g)
    torch.maximum(largest, b, out=largest)
    smallest = torch.minimum(r, g)
    torch.minimum(smallest, b, out=smallest)
    chroma = largest - smallest
    angle = (g + b).sub_(r).sub_(smallest).add_(chroma)
    angle.div_(chroma.clamp_min(1e-7)).copysign_(g - b)
    angle.add_(6 * (turns[:, None, None] if isinstance(turns, Tensor) else turns))
    angle.sub_((angle * (1 / 6)).floor_(), alpha=6)
    # clamp(2 - d, 0, 1) = 2 - clamp(d, 1, 2); for red d is 3 - |angle - 3|, hence clamp(|angle - 3|, 1, 2) - 1.
    distance = torch.sub(angle, 3).abs_().clamp_(1, 2)
    torch.addcmul(smallest.sub_(chroma), chroma, distance, out=r)
    largest.add_(chroma)
    for plane, own in ((g, 2), (b, 4)):
        torch.sub(angle, own, out=distance).abs_().clamp_(1, 2)
        torch.addcmul(largest, chroma, distance, value=-1, out=plane)
    return x


def jitter_(
    x: Float[Tensor, "c n h w"], factors: Float[Tensor, "n 4"], order: Int[Tensor, "n 4"], hue_at: int
) -> Tensor:
    """The four operations in each sample's ``order``, which has hue at the same place, ``hue_at``, in every sample."""
    for place in range(4):
        if place != hue_at:
            operation = order[:, place]
            blend_(x, factors.gather(1, operation[:, None])[:, 0], operation)
        elif len(x) == 3:
            turn_hue_(x, factors[:, HUE])
    return x


def jitter_each_(x: Float[Tensor, "c n h w"], factors: Float[Tensor, "n 4"], order: Int[Tensor, "n 4"]) -> Tensor:
    """``jitter_`` one sample after the other, each operation with as few passes as it needs: for few large images."""
    for k, (own, operations) in enumerate(zip(factors.tolist(), order.tolist(), strict=True)):
        sample = x[:, k]
        for operation in operations:
            factor = own[operation]
            if operation == HUE:
                if len(x) == 3:
                    turn_hue_(x[:, k : k + 1], factor)
            elif operation == BRIGHTNESS:
                sample.mul_(factor).clamp_(max=1)
            elif operation == CONTRAST:
                mean = sum(plane.mean() * share for plane, share in zip(sample, _shares(len(x)), strict=True))
                torch.add(mean * (1 - factor), sample, alpha=factor, out=sample).clamp_(0, 1)
            elif len(x) == 3:
                grey = luma(x[:, k : k + 1])[0].mul_(1 - factor)
                torch.add(grey, sample, alpha=factor, out=sample).clamp_(0, 1)
    return x


def greyscale_(x: Float[Tensor, "c n h w"], rows: Int[Tensor, " k"], greyscale: Greyscale = "luma") -> Tensor:
    """Gives the samples ``rows`` three equal channels; images of other than three channels stay as they are."""
    if len(x) == 3 and len(rows):
        some = x.index_select(1, rows)
        grey = luma(some) if greyscale == "luma" else lightness(*some) / 100
        for plane in x:
            plane.index_copy_(0, rows, grey)
    return x


def solarise_(x: Float[Tensor, "c n h w"], rows: Int[Tensor, " k"], threshold: float) -> Tensor:
    """Inverts what is at least ``threshold`` in the samples ``rows``."""
    if len(rows):
        some = x.index_select(1, rows)
        x.index_copy_(1, rows, torch.where(some >= threshold, 1 - some, some))
    return x
