"""Crops of one photograph: where they lie, what becomes of them, and what --data says of it."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from selfsight.data import single
from selfsight.data.opening import open_data, open_splits
from selfsight.data.protocol import DataError
from selfsight.data.single import FEW, MANY, Single


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A smooth picture of 300 x 200 whose red tells the column and whose green tells the row."""
    x, y = np.meshgrid(np.arange(300), np.arange(200))
    picture = np.stack([x * 255 / 299, y * 255 / 199, 255 - x * 255 / 299], axis=-1)
    Image.fromarray(np.rint(picture).astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_areas_are_uniform_and_nothing_is_seen_more_often(photograph: Path) -> None:
    source = Single(photograph, size=32)
    boxes = np.array([source.box(k) for k in range(3000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 300
    assert bottom.max() <= 200
    area, ratio = (right - left) * (bottom - top) / 100**2, (right - left) / (bottom - top)
    assert area.min() >= 1 / 500
    assert area.max() <= 1
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    # uniform but for what does not fit and is drawn again: an area of a fits if its ratio lies between a and 1 / a
    span = math.log(4 / 3)
    grid = np.linspace(1 / 500, 1, 2001)
    fits = np.minimum(-np.log(grid), span) / span
    expected, _ = np.histogram(grid, bins=10, range=(0, 1), weights=fits)
    found, _ = np.histogram(area, bins=10, range=(0, 1))
    assert np.abs(found / 3000 - expected / expected.sum()).max() < 0.02
    assert (np.abs((left + right) / 2 - 150) < 1).mean() < 0.03  # no atom in the middle
    columns, _ = np.histogram((left + right) / 2, bins=6, range=(0, 300))
    rows, _ = np.histogram((top + bottom) / 2, bins=4, range=(0, 200))
    assert columns.min() > 0
    assert rows.min() > 0
    assert len(np.unique(boxes, axis=0)) == 3000
    assert abs(np.corrcoef(left + right, top + bottom)[0, 1]) < 0.06
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 0.06


def test_without_turn_shear_and_jitter_an_image_is_a_part_of_its_box(
    photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "TURN", 0.0)
    monkeypatch.setattr(single, "SHEAR", 0.0)
    monkeypatch.setattr(single, "JITTERED", 0.0)
    source = Single(photograph, size=32)
    for k in range(20):
        left, top, right, bottom = source.box(k)
        red, green, blue = source.read(k).astype(float)
        # the central 32 of 45 pixels, whose centres lie half a pixel within
        spread = (np.arange(32) + 0.5 + 6.5) / 45
        columns, rows = left + spread * (right - left) - 0.5, top + spread * (bottom - top) - 0.5
        assert np.abs(red - columns[None] * 255 / 299).max() < 2.5
        assert np.abs(green - rows[:, None] * 255 / 199).max() < 2.5
        assert np.abs(red + blue - 255).max() <= 2


@pytest.mark.parametrize(("turn", "shear"), [(0.9, 0.5), (0.5, 0.1), (0.2, 0.95), (1.0, 1.0)])
def test_turn_and_shear_are_torchvisions_and_mirror_at_the_border(turn: float, shear: float) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = small.resize((90, 90), Image.Resampling.BICUBIC)
    angle, slope = (2 * turn - 1) * 30, (2 * shear - 1) * 30
    theirs = functional.affine(
        image, angle, [0, 0], 1.0, [slope, 0.0], interpolation=functional.InterpolationMode.BILINEAR
    )
    whole = functional.affine(
        Image.new("L", (90, 90), 255), angle, [0, 0], 1.0, [slope, 0.0], functional.InterpolationMode.BILINEAR
    )
    ours = np.asarray(single._turned(image, 64, turn, shear)).astype(int)
    inside = np.asarray(functional.center_crop(whole, [64, 64])) == 255
    assert np.abs(ours - np.asarray(functional.center_crop(theirs, [64, 64])))[inside].max() <= 2
    assert inside.mean() > 0.7
    flat = single._turned(Image.new("RGB", (90, 90), (200, 100, 50)), 64, turn, shear)
    assert (np.asarray(flat) == (200, 100, 50)).all()  # no black corners


def test_half_of_the_images_are_jittered_within_bounds(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100), (100, 120, 140)).save(tmp_path / "flat.png")
    source = Single(tmp_path / "flat.png", size=16)
    images = [source.read(k) for k in range(300)]
    assert all((image == image[:, :1, :1]).all() for image in images)
    colours = np.array([image[:, 0, 0] for image in images]).astype(int)
    same = (np.abs(colours - (100, 120, 140)) <= 1).all(1)
    assert 0.42 < same.mean() < 0.58
    assert colours.min() >= 45
    assert colours.max() > 150


def test_numbers_decide_alone(photograph: Path) -> None:
    source, other = Single(photograph, size=32), Single(photograph, size=32)
    assert (source.read(7) == other.read_many(np.array([3, 7]))[1]).all()
    assert (pickle.loads(pickle.dumps(source)).read(7) == source.read(7)).all()
    assert len(pickle.dumps(source)) < 2000  # the picture does not travel
    assert not (source.read(7) == source.read(8)).all()
    assert source.fingerprint == other.fingerprint != Single(photograph, size=48).fingerprint
    with pytest.raises(IndexError, match="position 50000 of 50000"):
        source.read(50_000)


def test_data_takes_a_photograph_by_its_name(photograph: Path, tmp_path: Path) -> None:
    source = open_data(f"single:{photograph}", image_size=32)
    assert (len(source), source.native, source.labels) == (FEW, (3, 32, 32), None)
    assert source.where(3) == "photo.png[3]"
    large = open_data(f"single:{photograph}")
    assert (len(large), large.native) == (MANY, (3, 256, 256))
    assert len(open_data(f"single:{photograph}", image_size=32, limit=100)) == 100
    assert open_data(f"single:{photograph}", image_size=32, channels=1).read(0).shape == (1, 32, 32)
    train, _ = open_splits(f"single:{photograph}", image_size=32)
    assert len(train) == FEW
    with pytest.raises(DataError, match=r"no photograph 'nowhere.jpg'; write single:PHOTO.jpg"):
        open_data("single:nowhere.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken.jpg is not an image in a known format; single: needs one photograph"):
        open_data(f"single:{tmp_path / 'broken.jpg'}")
    Image.new("RGB", (20, 200)).save(tmp_path / "narrow.png")
    with pytest.raises(DataError, match="is 20 x 200 px; single: needs at least 32 a side"):
        open_data(f"single:{tmp_path / 'narrow.png'}")
