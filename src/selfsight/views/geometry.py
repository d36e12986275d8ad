"""Crop, flip and antialiased resize, batched: two small matrix products an image.

Resizing is separable and linear, so a view is ``A X B`` with A and B made from the box: row i of A holds the filter
centred at ``top + (i + 1/2) height / size``, stretched by ``max(1, height / size)`` (antialiasing), cut off at the box
and normalised to sum 1. Bilinear is the triangle of width 2, bicubic is Keys's kernel with a = -1/2, as Pillow and
torchvision (``antialias=True``) have them. A flip reverses B's columns.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfsight.views.view import Boxes, Interpolation

_TABLE_LIMIT = 4_000_000
"""Floats of a weight table (16 MB; 96 px to 96 px is 14 MB): beyond, weights are computed for each sample."""


def _kernel(distance: Tensor, interpolation: Interpolation) -> Tensor:
    if interpolation == "bilinear":
        return (1 - distance).clamp_min(0)
    # Keys with a = -1/2, written as the outer piece (2-t)^2 (1-t) / 2 and, below 1, what the inner piece adds to it.
    outer = (2 - distance).clamp_min(0)
    inner = (1 - distance).clamp_min(0)
    return outer * outer * (outer - 1) / 2 + inner * inner * (1 - 2 * inner)


def weights(
    start: Float[Tensor, " n"],
    length: Float[Tensor, " n"],
    pixels: int,
    size: int,
    interpolation: Interpolation,
    *,
    closed: bool,
) -> Float[Tensor, "n p s"]:
    """Each output's weights on the ``pixels`` of one axis, for the stretch of ``length`` from ``start``.

    ``closed``: only pixels of that stretch are seen; otherwise all are, and outputs centred outside them are zero.
    """
    step = length[:, None] / size
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step
    at = torch.arange(pixels, device=start.device) + 0.5
    stretch = step.clamp_min(1)
    distance = (at[None, :, None] - centre[:, None, :]).abs() / stretch[:, :, None]
    taps = _kernel(distance, interpolation)
    if closed:
        taps = taps * ((at > start[:, None]) & (at < (start + length)[:, None]))[:, :, None]
    else:
        taps = taps * ((centre > 0) & (centre < pixels))[:, None, :]
    total = taps.sum(1, keepdim=True)
    return (taps / torch.where(total == 0, 1, total)).float()


@lru_cache(maxsize=32)
def _table(pixels: int, size: int, interpolation: Interpolation, device: torch.device) -> Float[Tensor, "f l p s"]:
    """The weights of every whole stretch of an axis, plain and flipped: ``pixels`` rows from row ``pixels - start``
    of entry ``length - 1`` are the weights of ``length`` pixels from ``start``, since a shift only moves the rows."""
    length = torch.arange(1, pixels + 1, dtype=torch.float64)
    taps = weights(torch.zeros_like(length), length, pixels, size, interpolation, closed=True)
    taps = torch.cat([torch.zeros_like(taps), taps], dim=1)
    return torch.stack([taps, taps.flip(-1)]).to(device)


def _axis(  # noqa: PLR0917
    start: Tensor, length: Tensor, flip: Tensor | None, pixels: int, size: int, how: Interpolation, *, closed: bool
) -> Float[Tensor, "n p s"]:
    if closed and 4 * pixels * pixels * size <= _TABLE_LIMIT:
        table = _table(pixels, size, how, start.device)
        side = 0 if flip is None else flip.long()
        row = ((side * pixels + length.long() - 1) * 2 + 1) * pixels - start.long()
        windows = table.as_strided((table.numel() // size - pixels + 1, pixels * size), (size, 1))
        return windows.index_select(0, row).view(-1, pixels, size)
    taps = weights(start, length, pixels, size, how, closed=closed)
    return taps if flip is None else torch.where(flip[:, None, None], taps.flip(-1), taps)


def resample(
    images: UInt8[Tensor, "b c h w"], rows: Int[Tensor, " n"], box: Boxes, size: int, interpolation: Interpolation
) -> Float[Tensor, "c n s s"]:
    """Cuts ``box[k]`` of ``images[rows[k]]``, flips and resizes it: channels first, values in [0, 1]."""
    channels, height, width = images.shape[1:]
    vertical = _axis(box.top, box.height, None, height, size, interpolation, closed=box.closed).transpose(1, 2)
    horizontal = _axis(box.left, box.width, box.flip, width, size, interpolation, closed=box.closed)
    x = images.index_select(0, rows) * (1 / 255)
    x = torch.bmm(x.view(len(rows), channels * height, width), horizontal).view(-1, channels, height, size)
    out = x.new_empty(channels, len(rows), size, size)
    for plane in range(channels):
        torch.bmm(vertical, x[:, plane], out=out[plane])
    return out if interpolation == "bilinear" else out.clamp_(0, 1)


def cut(image: UInt8[Tensor, "c h w"], box: Boxes, size: int, interpolation: Interpolation) -> UInt8[Tensor, "c s s"]:
    """Cuts, resizes and flips the box of one image as uint8 on the CPU (``box`` has one entry).

    Pillow's pixels to within 2: like it, the uint8 kernels round, and for bicubic clamp, between the two axes. Images
    whose memory runs along the channels first (a decoded image, permuted) are up to five times quicker.
    """
    top, left, height, width = (value.item() for value in box[:4])
    if box.closed:
        t, e, h, w = round(top), round(left), round(height), round(width)
        view = _resize(image[None, :, t : t + h, e : e + w], size, size, interpolation)[0]
    else:
        down, right = round(top * size / height), round(left * size / width)
        reach = max(abs(down), abs(right))
        view = F.pad(_resize(image[None], size, size, interpolation)[0], (reach,) * 4)
        view = view[:, reach + down : reach + down + size, reach + right : reach + right + size]
    return view.flip(-1) if box.flip.item() else view


def centre(images: Tensor, size: int, short: int, interpolation: Interpolation) -> Tensor:
    """Resizes the short side of ``b c h w`` to ``short`` pixels and cuts the centre, as torchvision's two steps do."""
    height, width = resized(images.shape[2], images.shape[3], short)
    view = _resize(images, height, width, interpolation)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return view[:, :, top : top + size, left : left + size]


def resized(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width once the short side has ``short`` pixels."""
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def _resize(images: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    if images.shape[2:] == (height, width):
        return images
    images = images.contiguous(memory_format=torch.channels_last)  # what the uint8 kernels are quickest on
    return F.interpolate(images, (height, width), mode=interpolation, antialias=True)
