"""Small pictures that live inside the page: thumbnails, sprites and data addresses."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from selfsight.report.content import Picture, Sprite


def as_image(array: UInt8[np.ndarray, "c h w"]) -> Image.Image:
    """An image of 8-bit channels for the eye: grey where there is one or two, else the first three as RGB.

    >>> as_image(np.zeros((1, 4, 6), np.uint8)).size
    (6, 4)
    """
    shown = array[[0, 0, 0]] if array.shape[0] < 3 else array[:3]
    return Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))


def thumbnail(image: Image.Image, size: int) -> Image.Image:
    """The centre square of ``image`` at ``size`` px; small originals are enlarged without inventing detail."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.NEAREST if side * 2 <= size else Image.Resampling.BICUBIC)


def data_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """The image as an address that holds it: PNG where every pixel counts, else WebP."""
    packed = io.BytesIO()
    if lossless:
        image.save(packed, "PNG", optimize=True)
    else:
        image.save(packed, "WEBP", quality=82, method=4)
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"


def picture(image: Image.Image, caption: str = "") -> Picture:
    """The image as a part of the page."""
    return Picture(data_uri(image), image.width, image.height, caption)


def sprite(images: Sequence[Image.Image], cell: int) -> Sprite:
    """All images as thumbnails of ``cell`` px in one, as near to a square as their number allows."""
    columns = max(1, math.ceil(math.sqrt(len(images))))
    sheet = Image.new("RGB", (columns * cell, max(1, math.ceil(len(images) / columns)) * cell))
    for i, image in enumerate(images):
        sheet.paste(thumbnail(image, cell), (i % columns * cell, i // columns * cell))
    return Sprite(data_uri(sheet), cell, columns)
