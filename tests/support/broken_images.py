"""Broken image files by seed: whole pictures of every format, and what becomes of them when they are cut, flipped,
spliced, mislabelled or made by someone who means harm. Nothing is kept on disk between runs."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image


class Case(NamedTuple):
    """One file: ``kind`` says how it was broken, ``name`` is the file's, unique in the corpus."""

    name: str
    kind: str
    content: bytes


def corpus(n: int, *, seed: int = 0) -> Iterator[Case]:
    """``n`` files, the hand-made first, then each kind of damage in turn; any prefix has some of every kind."""
    made = list(hand_made())
    for i in range(n):
        if i < len(made):
            suffix, content = made[i]
            yield Case(f"{i:05d}-made{suffix}", f"made: {suffix}", content)
            continue
        drawn = np.random.default_rng((seed, i))
        suffix, content = whole()[int(drawn.integers(len(whole())))]
        how = DAMAGES[i % len(DAMAGES)]
        suffix, content = how(suffix, content, drawn)
        yield Case(f"{i:05d}-{how.__name__}{suffix}", how.__name__, content)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    # a copy: Pillow keeps one format's settings in the image and hands them to the next
    image.copy().save(file, kind, **options)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def stored(array: np.ndarray) -> bytes:
    """The array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def scene(width: int = 40, height: int = 28) -> Image.Image:
    """Smooth with some noise, so that no format finds it trivial."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 32, (height, width, 3))
    smooth = np.stack([x * 5, y * 7, 255 - x * 2 - y * 3], -1) % 224
    return Image.fromarray((smooth + noise).astype(np.uint8))


@cache
def whole() -> tuple[tuple[str, bytes], ...]:
    """Pictures that nothing is wrong with, of each format and mode, by suffix."""
    rgb = scene()
    frames = [scene(32, 24).rotate(90 * i) for i in range(3)]
    turned, exif = scene(), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(40 * 28, dtype=np.uint32).reshape(28, 40) * 58).astype(np.uint16))
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    palette, cmyk, grey = rgb.quantize(60), rgb.convert("CMYK"), rgb.convert("L")
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return (
        (".jpg", encoded(rgb, "JPEG", quality=90)),
        (".jpg", encoded(rgb, "JPEG", progressive=True)),
        (".jpeg", encoded(turned, "JPEG", exif=exif)),
        (".jpg", encoded(grey, "JPEG")),
        (".jpg", encoded(cmyk, "JPEG")),
        (".jpg", encoded(rgb, "MPO", save_all=True, append_images=frames[1:2])),
        (".png", encoded(rgb, "PNG")),
        (".png", encoded(rgba, "PNG", exif=exif)),
        (".png", encoded(deep, "PNG")),
        (".png", encoded(palette, "PNG", transparency=3)),
        (".png", encoded(grey.convert("1"), "PNG")),
        (".png", encoded(frames[0], "PNG", **animated)),
        (".webp", encoded(rgb, "WEBP", quality=80)),
        (".webp", encoded(rgba, "WEBP", lossless=True)),
        (".webp", encoded(frames[0], "WEBP", **animated)),
        (".gif", encoded(palette, "GIF")),
        (".gif", encoded(frames[0].quantize(32), "GIF", save_all=True, append_images=[f.quantize(32) for f in frames])),
        (".tif", encoded(rgb, "TIFF")),
        (".tiff", encoded(rgb, "TIFF", compression="tiff_lzw")),
        (".tif", encoded(deep, "TIFF", compression="tiff_adobe_deflate")),
        (".tif", encoded(rgb, "TIFF", compression="jpeg")),
        (".tif", encoded(cmyk, "TIFF", compression="packbits")),
        (".tif", encoded(frames[0], "TIFF", save_all=True, append_images=[f.copy() for f in frames])),
        (".tif", encoded(Image.fromarray(np.linspace(0, 1, 1120, dtype=np.float32).reshape(28, 40)), "TIFF")),
        (".bmp", encoded(rgb, "BMP")),
        (".bmp", encoded(palette, "BMP")),
        (".npy", stored(np.asarray(rgb))),
        (".npy", stored(np.asarray(deep))),
        (".npy", stored(np.asarray(rgb, dtype=np.float32).transpose(2, 0, 1) / 255)),
        (".png", encoded(scene(1, 1), "PNG")),
        (".jpg", encoded(scene(1, 20_000), "JPEG")),
        (".png", encoded(scene(20_000, 1), "PNG")),
        (".gif", encoded(scene(1, 1).quantize(2), "GIF")),
        (".webp", encoded(scene(1, 3000), "WEBP", lossless=True)),
    )


def hand_made() -> Iterator[tuple[str, bytes]]:
    """What nobody's disk does by itself: bombs, claims of size, other files under an image's name."""
    yield from ((suffix, content) for suffix, content in whole())
    for suffix in (".jpg", ".png", ".webp", ".gif", ".tif", ".bmp", ".npy"):
        yield suffix, b""
        yield suffix, b"This is a letter, not a picture.\n" * 20
        yield suffix, bytes(5000)
        yield suffix, b"\xff" * 5000
    yield ".jpg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    yield ".jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch owned) (w) file\n%%EOF\n"
    yield ".png", b"PK\x03\x04" + bytes(200)
    yield ".npy", b"PK\x03\x04" + bytes(200)
    yield ".npy", archive()
    yield ".gif", b"\x7fELF" + bytes(200)
    yield ".tif", b"#!/bin/sh\ntouch owned\n"
    yield from bombs()
    for width, height in ((0, 5), (5, 0), (1, 2**31 - 1)):
        yield ".png", png_claiming(width, height)
    yield ".png", png_with(b"zTXt", b"key\0\0" + zlib.compress(bytes(50_000_000)))
    yield ".png", png_with(b"iCCP", b"key\0\0" + zlib.compress(bytes(50_000_000)))
    yield ".png", png_with(b"eXIf", b"MM\0*" + b"\xff" * 60)
    yield ".bmp", whole()[24][1][:18] + struct.pack("<ii", 40, -(2**31)) + whole()[24][1][26:]
    yield ".jpg", jpeg_of_scans(13_000, 20_000)
    yield ".jpg", jpeg_claiming(whole()[0][1], 0)
    yield ".tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + bytes(12) + struct.pack("<I", 8)  # a loop
    yield ".tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65_535) + b"\xff" * 400
    for shape in ("(-5, 3)", "(0, 0)", "(9,)", "(2, 3, 4, 5)", "()", "(10**9,)", "('a', 'b')"):
        yield ".npy", npy_claiming("|u1", shape)
    for kind in ("|O", "<M8[s]", "<c16", "<U9", "[('a', '|O')]", "no type"):
        yield ".npy", npy_claiming(kind, "(4, 4)")
    yield ".npy", npy_claiming("|u1", "(4, 4)" + "(" * 5000)
    yield ".npy", npy_claiming("|u1", "__import__('os').system('touch owned')")
    yield ".npy", stored_pickle()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files of more pixels than may be read, of 200 million and of thousands of millions."""
    yield ".png", encoded(Image.new("1", (14_000, 14_000)), "PNG")
    yield ".tif", encoded(Image.new("1", (14_000, 14_000)), "TIFF", compression="tiff_adobe_deflate")
    for side in (14_000, 2**31 - 1):
        yield ".png", png_claiming(side, side)
    for side in (14_000, 65_535):
        yield ".gif", b"GIF89a" + struct.pack("<HH", side, side) + whole()[15][1][10:]
        yield ".jpg", jpeg_claiming(whole()[0][1], side)
    for side in (14_000, 40_000):
        yield ".bmp", whole()[24][1][:18] + struct.pack("<ii", side, side) + whole()[24][1][26:]
    for side in (14_000, 1_000_000):
        yield ".npy", npy_claiming("|u1", f"({side}, {side})")


def archive() -> bytes:
    """A zip of arrays, as ``np.savez`` writes it."""
    file = io.BytesIO()
    np.savez(file, images=np.zeros((4, 4), np.uint8))
    return file.getvalue()


def stored_pickle() -> bytes:
    """An array of objects: loading it would run what they say."""
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def npy_claiming(kind: str, shape: str) -> bytes:
    """A .npy file with a header of one's own, and hardly anything behind it."""
    described = kind if kind.startswith("[") else repr(kind)
    header = f"{{'descr': {described}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header names a size that its few bytes of pixels do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_with(kind: bytes, data: bytes) -> bytes:
    """A sound PNG with one more chunk behind its header."""
    png = encoded(scene(), "PNG")
    return png[:33] + chunk(kind, data) + png[33:]


def jpeg_claiming(jpeg: bytes, size: int) -> bytes:
    """A JPEG whose frame is said to be of ``size`` pixels a side."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", size, size) + jpeg[at + 4 :]


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of ``side`` pixels that says over and over that its pixels hold nothing new."""
    jpeg = encoded(Image.new("L", (64, 64), 77), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xc2") + 5
    jpeg = jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]
    second = jpeg.index(b"\xff\xda", jpeg.index(b"\xff\xda") + 2)
    scan = jpeg[jpeg.rindex(b"\xff\xc4", 0, second) : second + 10] + b"\0"
    return jpeg[: second + 10] + b"\0" + scan * scans + b"\xff\xd9"


Damage = Callable[[str, bytes, np.random.Generator], tuple[str, bytes]]


def cut(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """The first bytes alone."""
    return suffix, content[: int(drawn.integers(len(content)))]


def flipped(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """One to thirty-two bits, anywhere."""
    found = bytearray(content)
    for bit in drawn.integers(8 * len(found), size=int(drawn.integers(1, 33))).tolist():
        found[bit // 8] ^= 1 << bit % 8
    return suffix, bytes(found)


def wrong_header(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """One to eight of the first 64 bytes, where the sizes stand; the magic number often survives."""
    found = bytearray(content)
    for at in drawn.integers(4, min(64, len(found)), size=int(drawn.integers(1, 9))).tolist():
        found[at] = int(drawn.choice([0, 1, 0x7F, 0x80, 0xFF, int(drawn.integers(256))]))
    return suffix, bytes(found)


def overwritten(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """A stretch of zeros, ones or noise, as of a bad sector."""
    start, length = int(drawn.integers(len(content))), int(drawn.integers(1, 513))
    filling = (bytes(length), b"\xff" * length, drawn.bytes(length))[int(drawn.integers(3))]
    return suffix, (content[:start] + filling + content[start + length :])[: len(content)]


def spliced(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """The beginning of one file and the end of another."""
    _, other = whole()[int(drawn.integers(len(whole())))]
    return suffix, content[: int(drawn.integers(len(content)))] + other[int(drawn.integers(len(other))) :]


def doubled(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """A piece of the file once more, somewhere else in it."""
    a, b = sorted(drawn.integers(len(content), size=2).tolist())
    at = int(drawn.integers(len(content)))
    return suffix, content[:at] + content[a : min(b, a + 4096)] + content[at:]


def renamed(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """Another format's name, and one bit in two files of three."""
    other = str(drawn.choice([".jpg", ".png", ".webp", ".gif", ".tif", ".bmp", ".npy"]))
    return other, flipped(suffix, content, drawn)[1] if drawn.integers(3) else content


def flipped_behind(suffix: str, content: bytes, drawn: np.random.Generator) -> tuple[str, bytes]:
    """A sound header before damaged pixels: what a survey of headers does not find."""
    start = min(len(content) - 1, 100 + len(content) // 3)
    return suffix, content[:start] + flipped(suffix, content[start:], drawn)[1]


DAMAGES: tuple[Damage, ...] = (
    cut,
    flipped,
    wrong_header,
    overwritten,
    spliced,
    doubled,
    renamed,
    flipped_behind,
)
