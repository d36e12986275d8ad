"""Every format and mode becomes the pixels it shows; every broken file becomes a reason."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from selfsight.data import decoding
from selfsight.data.decoding import decode, jpeg_size, probe
from selfsight.data.protocol import Unreadable


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def numpy_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    """17 x 11, smooth, so that lossy formats stay near, and different in all its corners."""
    y, x = np.mgrid[0:11, 0:17]
    return Image.fromarray(np.stack([x * 15, y * 23, 255 - x * 7 - y * 9], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_keep_every_pixel(picture: Image.Image, kind: str) -> None:
    palette = picture.quantize(200)
    shown = palette.convert("RGB") if kind == "GIF" else picture
    data = encoded(palette if kind == "GIF" else picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data), np.asarray(shown).transpose(2, 0, 1))
    assert probe(data) == (3, 11, 17)


def test_jpeg_is_near(picture: Image.Image) -> None:
    data = encoded(picture, "JPEG", quality=98, subsampling=0)
    assert np.abs(decode(data).astype(int) - np.asarray(picture).transpose(2, 0, 1)).max() <= 6
    assert probe(data) == (3, 11, 17)


def test_first_frame_of_an_animation(picture: Image.Image) -> None:
    first = picture.quantize(64)
    data = encoded(first, "GIF", save_all=True, append_images=[Image.new("P", first.size, 3)])
    np.testing.assert_array_equal(decode(data), np.asarray(first.convert("RGB")).transpose(2, 0, 1))


def test_grey_is_repeated_or_kept(picture: Image.Image) -> None:
    grey = picture.convert("L")
    for channels in (1, 3):
        expected = np.broadcast_to(np.asarray(grey), (channels, 11, 17))
        np.testing.assert_array_equal(decode(encoded(grey, "PNG"), channels=channels), expected)
    np.testing.assert_array_equal(decode(encoded(picture, "PNG"), channels=1)[0], np.asarray(grey))


def test_one_bit_images_are_black_and_white() -> None:
    bits = Image.fromarray(np.eye(9, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(decode(encoded(bits, "PNG"))[0], np.eye(9, dtype=np.uint8) * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode: str) -> None:
    grey, alpha = 40, 102  # 0.4 of 40 and 0.6 of white
    image = Image.new("RGBA", (4, 3), (grey, grey, grey, alpha)).convert(mode)
    assert np.unique(decode(encoded(image, "PNG"))).tolist() == [round(0.4 * grey + 0.6 * 255)]


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    found = decode(encoded(image, "PNG", transparency=0))
    assert found[:, 0, 0].tolist() == [200, 100, 50]
    assert found[:, 1, 3].tolist() == [255, 255, 255]


def test_cmyk_shows_its_colour() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        red, green, blue = decode(encoded(cyan, kind)).mean((1, 2))
        assert red < 10
        assert green > 245
        assert blue > 245


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(values), kind))[1], expected)


def test_float_images_lie_between_0_and_1() -> None:
    tiff = encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "TIFF")
    assert decode(tiff)[0].tolist() == [[0, 128, 255]]
    with pytest.raises(Unreadable, match="floats from 0 to 300"):
        decode(encoded(Image.fromarray(np.array([[0.0, 300.0]], dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(picture: Image.Image, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, kind, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), shown.transpose(2, 0, 1))
    assert probe(data) == (3, *shown.shape[:2])
    assert (shown.shape[0] > shown.shape[1]) == (orientation >= 5)


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 7), (3, 5, 7)), ((5, 7, 3), (3, 5, 7)), ((3, 5, 7), (3, 5, 7)), ((1, 5, 7), (3, 5, 7))]
)
def test_arrays_in_any_order_of_axes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    data = numpy_file(array)
    found = decode(data)
    assert found.shape == expected == probe(data)
    if shape == (5, 7, 3):
        np.testing.assert_array_equal(found, array.transpose(2, 0, 1))
    else:
        np.testing.assert_array_equal(found, np.broadcast_to(array, expected))


def test_arrays_of_other_types_and_channels() -> None:
    bands = np.random.default_rng(0).integers(0, 65536, (6, 9, 8)).astype(np.uint16)
    assert probe(numpy_file(bands)) == (6, 9, 8)
    np.testing.assert_array_equal(decode(numpy_file(bands), channels=6), np.rint(bands / 65535 * 255).astype(np.uint8))
    assert decode(numpy_file(np.full((4, 4), 0.5)))[0, 0, 0] == 128
    assert decode(numpy_file(np.ones((4, 4), dtype=bool)))[0, 0, 0] == 255
    with pytest.raises(Unreadable, match="has 6 channels, not 3; --channels 6"):
        decode(numpy_file(bands))
    with pytest.raises(Unreadable, match="int64"):
        decode(numpy_file(np.zeros((4, 4), dtype=np.int64)))
    with pytest.raises(Unreadable, match="floats from nan"):
        decode(numpy_file(np.full((4, 4), np.nan)))
    with pytest.raises(Unreadable, match=r"shape \(2, 2, 2, 2\)"):
        decode(numpy_file(np.zeros((2, 2, 2, 2), dtype=np.uint8)))


def test_foreign_pickles_are_not_opened() -> None:
    with pytest.raises(Unreadable, match="allow_pickle=False"):
        decode(numpy_file(np.array([{"a": 1}], dtype=object)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_unreadable(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(Unreadable):
        decode(data[: len(data) // 2])


def test_reasons_name_what_is_wrong(tmp_path) -> None:
    for data, reason in [(b"", "is empty"), (b"no image at all", "not an image"), (tmp_path / "x.png", "no such file")]:
        with pytest.raises(Unreadable, match=reason):
            decode(data)
    (tmp_path / "empty.png").touch()
    with pytest.raises(Unreadable, match="not an image"):
        probe(tmp_path / "empty.png")
    eps = encoded(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(Unreadable, match="not an image in a known format"):
        decode(eps)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 14_000  # 196 million pixels in 25 kB
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 100_000
    for read in (decode, probe):
        with pytest.raises(Unreadable, match=r"bomb|pixels"):
            read(bomb)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    for data in (encoded(Image.new("L", (10, 10)), "JPEG"), numpy_file(np.zeros((10, 10), np.uint8))):
        with pytest.raises(Unreadable, match="has 100 pixels, more than the limit of 99"):
            probe(data)
        with pytest.raises(Unreadable, match="has 100 pixels, more than the limit of 99"):
            decode(data)


def test_broken_exif_does_not_lose_the_picture(picture: Image.Image) -> None:
    data = encoded(picture, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(data).shape == probe(data) == (3, 11, 17)


def test_jpeg_headers_are_read_without_pillow(picture: Image.Image) -> None:
    plain = encoded(picture, "JPEG")
    assert jpeg_size(plain) == (11, 17)
    assert jpeg_size(encoded(picture, "JPEG", progressive=True)) == (11, 17)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert jpeg_size(encoded(picture, "JPEG", exif=exif)) is None
    assert jpeg_size(plain[:8]) is None
    assert jpeg_size(encoded(picture, "PNG")) is None
