"""One encoded image to uint8 channels: JPEG, PNG, WebP, TIFF, BMP, the first frame of a GIF, NumPy's .npy.

What is done to each kind, so that nothing happens in silence:

- greyscale and palette become RGB; transparency is laid over white; CMYK and YCbCr are converted by Pillow;
- 16-bit values are scaled from 0-65535 to 0-255 (rounded), floats from 0-1; other ranges are refused, never clipped;
- EXIF orientation is applied, colour profiles are ignored;
- an .npy array is ``h w``, ``h w c`` or ``c h w``: the shorter of the first and the last axis holds the channels;
- an image of more than ``MAX_PIXELS`` is refused before its pixels are read, a file of more than ``MAX_BYTES`` before
  it is opened, and so is what is no file: reading a pipe or a device need not end.
"""

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from selfsight.data.protocol import Unreadable

MAX_PIXELS = 178_956_970
"""Half a gigabyte as RGB: where Pillow itself speaks of a decompression bomb and refuses."""

MAX_BYTES = 16 * MAX_PIXELS
"""Four channels of 32 bits for each of so many pixels."""

MAX_SCANS = 500
"""Of a JPEG: a progressive one has about ten, one with other pictures in it a few times as many."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".npy"})

# Only these decoders are let near foreign bytes. JPEG's also opens MPO, which many phones write as .jpg.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_NPY = b"\x93NUMPY"
_HEAD = 4096
_REASON = 300  # characters: a header of ten thousand may stand in an error, and a reason in each line of skipped.csv
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

Encoded = bytes | str | Path


def decode(data: Encoded, *, channels: int = 3) -> UInt8[np.ndarray, "c h w"]:
    """Decodes the image in ``data``, its bytes or the path of its file, to ``channels`` channels.

    Grey and RGB turn into each other; any other number of channels must be what the image has (RGBA counts as 3).
    Raises ``Unreadable`` with the reason, whatever is wrong with the bytes.

    >>> white = io.BytesIO()
    >>> Image.new("L", (3, 2), 255).save(white, "PNG")
    >>> decode(white.getvalue()).shape
    (3, 2, 3)
    """
    try:
        content = data if isinstance(data, bytes) else _ordinary(data).read_bytes()
        if not content:
            raise Unreadable("is empty")
        if content.startswith(_NPY):
            return fit_channels(to_bytes(channels_first(_array(io.BytesIO(content)))), channels)
        with warnings.catch_warnings():  # Pillow warns of what is judged here
            warnings.simplefilter("ignore")
            _refuse_scans(content)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _refuse_bomb(image.size[0] * image.size[1])
                return fit_channels(_pixels(_upright(image)), channels)
    except Exception as error:  # a broken file can raise nearly anything out of a decoder
        raise _unreadable(error) from error


def probe(data: Encoded) -> tuple[int, int, int]:
    """(channels, height, width) as ``decode`` would give them, from the header alone. Raises ``Unreadable``."""
    try:
        head = _head(data)
        size = jpeg_size(head)
        if size is not None:
            _refuse_bomb(size[0] * size[1])
            return 3, *size
        if head.startswith(_NPY):  # by its content, as decode goes: a name may say anything
            array = _array(io.BytesIO(data)) if isinstance(data, bytes) else _array(data)
            bands, height, width = channels_first(array).shape
            return (3 if bands == 1 else bands), height, width
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_FORMATS) as image:
                _refuse_bomb(image.size[0] * image.size[1])
                width, height = image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size
                return 3, height, width
    except Exception as error:
        raise _unreadable(error) from error


def jpeg_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) from the first bytes of a plain JPEG; None where Pillow must look, as for one with EXIF.

    Many times faster than opening the image, which matters for the headers of a whole small data set.
    """
    at = 2 if head.startswith(b"\xff\xd8\xff") else len(head)
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return int.from_bytes(head[at + 5 : at + 7], "big"), int.from_bytes(head[at + 7 : at + 9], "big")
        if marker == 0xE1 or not 0xC0 <= marker <= 0xFE:  # EXIF may turn the picture; padding is rare
            return None
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _head(data: Encoded) -> bytes:
    if isinstance(data, bytes):
        return data[:_HEAD]
    with open(_ordinary(data), "rb", buffering=0) as file:
        return file.read(_HEAD)


def _ordinary(path: str | Path) -> Path:
    """The path, where it leads to a file of a size that may be read whole."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("is no ordinary file")
    if found.st_size > MAX_BYTES:
        raise Unreadable(f"has {found.st_size:,} bytes, more than the limit of {MAX_BYTES:,}")
    return Path(path)


def _array(file: io.BytesIO | str | Path) -> np.ndarray:
    mapped = None if isinstance(file, io.BytesIO) else "r"
    array = np.load(file, mmap_mode=mapped, allow_pickle=False)
    if array.ndim not in (2, 3) or array.size == 0:
        raise Unreadable(f"is an array of shape {array.shape}; an image has 2 or 3 axes")
    _refuse_bomb(channels_first(array)[0].size)
    return array


def _refuse_bomb(pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise Unreadable(f"has {pixels:,} pixels, more than the limit of {MAX_PIXELS:,}")


def _refuse_scans(content: bytes) -> None:
    """Refuses a JPEG that draws its picture over and over: thirty bytes a time cost a second for each hundred times."""
    scans = content.count(b"\xff\xda") if content.startswith(b"\xff\xd8") else 0
    if scans > MAX_SCANS:
        raise Unreadable(f"has {scans:,} scans, more than the limit of {MAX_SCANS}")


def _unreadable(error: Exception) -> Unreadable:
    if isinstance(error, FileNotFoundError):
        return Unreadable("no such file")
    if isinstance(error, Image.UnidentifiedImageError):
        return Unreadable("is not an image in a known format")  # Pillow's own words hold a memory address
    said = str(error) if isinstance(error, Unreadable) else f"{type(error).__name__}: {error}"
    line = " ".join(said.split())
    return Unreadable(line if len(line) <= _REASON else f"{line[: _REASON - 3]}...")


def _orientation(image: Image.Image) -> int:
    # a TIFF is turned by Pillow itself; asked for the EXIF of a PNG that starts with none, Pillow would decode the
    # whole picture to look behind it
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is no reason to lose the picture
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image)
        # 32-bit integers are how 16-bit greyscale files arrive in some modes
        return to_bytes(array.astype(np.uint16) if _holds_16_bits(array) else array)[None]
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    wanted = "L" if image.mode in ("1", "L") else "RGB"
    array = np.array(image if image.mode == wanted else image.convert(wanted))  # a copy that may be written to
    return channels_first(array) if array.ndim == 2 else array.transpose(2, 0, 1)


def _holds_16_bits(array: np.ndarray) -> bool:
    return array.dtype.kind in "iu" and bool(array.min() >= 0 and array.max() <= 65535)


def channels_first(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "... c h w"]:
    """``h w``, ``h w c`` or ``c h w`` as ``c h w``: the shorter of first and last axis holds the channels."""
    if array.ndim == 2:
        return array[None]
    return array.transpose(2, 0, 1) if array.shape[2] <= array.shape[0] else array


def to_bytes(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Scales 16-bit values from 0-65535 and floats from 0-1 to 0-255; refuses what else it cannot place."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if low >= 0 and high <= 1:  # also refuses NaN
            return np.rint(array * 255).astype(np.uint8)
        raise Unreadable(f"holds floats from {low:g} to {high:g}; save them within 0 and 1, or as uint8")
    raise Unreadable(f"holds {array.dtype} values; save it as uint8, uint16 or floats within 0 and 1")


def fit_channels(image: UInt8[np.ndarray, "b h w"], channels: int) -> UInt8[np.ndarray, "c h w"]:
    """Grey to RGB by repetition, RGB to grey by ITU-R 601-2; other numbers of channels must agree.

    What needs no change stays as it lies in memory: a decoded picture's channels of a pixel side by side, which is what
    cutting and resizing are quickest on.
    """
    if len(image) == 1 and channels == 3:
        return np.repeat(image, 3, axis=0)
    if len(image) == 3 and channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L"))[None]
    if len(image) != channels:
        raise Unreadable(f"has {len(image)} channels, not {channels}; --channels {len(image)} reads such images")
    return image if image.flags.writeable else image.copy(order="K")  # torch takes no memory that is another's
