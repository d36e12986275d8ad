"""What --data may say of tables, arrays and data sets of other libraries, and the real data."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pixel_sources import folder_of, image, labels, values

from selfsight.data.opening import open_data, open_splits
from selfsight.data.protocol import DataError, Unreadable


def parquet(path: Path, columns: dict[str, list], features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def png(tmp_path: Path, value: int, size: tuple[int, int] = (8, 6)) -> bytes:
    image(value, size).save(tmp_path / "x.png")
    return (tmp_path / "x.png").read_bytes()


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    first = 0
    for name, n in {"train-00000-of-00002": 4, "train-00001-of-00002": 3, "test-00000-of-00001": 2}.items():
        rows = [{"bytes": png(tmp_path, i), "path": None} for i in range(first, first + n)]
        thumbs = [b"no image"] * n
        given = {"thumb": thumbs, "image": rows, "label": [i % 2 for i in range(n)]}
        parquet(tmp_path / "tables" / f"{name}.parquet", given, features)
        first += n
    return tmp_path / "tables"


@pytest.mark.usefixtures("no_network")
def test_parquet_folders_with_splits(tables: Path) -> None:
    train, test = open_splits(tables)
    assert (values(train), labels(train)) == ([0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 1, 0])
    assert (values(test), test.classes, test.where(1)) == ([7, 8], ("cat", "dog"), "tables test[1]")
    assert values(open_data(tables, split="all")) == list(range(9))
    assert train.native == (3, 6, 8)
    again = pickle.loads(pickle.dumps(train))
    assert values(again) == values(train)
    assert len(pickle.dumps(train)) < 5_000


def test_a_parquet_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", {"image": [png(tmp_path, v) for v in (5, 6)]})
    first = open_data(path)
    assert (values(first), first.labels) == ([5, 6], None)
    parquet(path, {"image": [png(tmp_path, v, (9, 9)) for v in (7, 8, 9)]})
    assert values(open_data(path)) == [7, 8, 9]
    assert open_data(path).native == (3, 9, 9)


def test_parquet_columns_of_other_kinds(tmp_path: Path) -> None:
    png(tmp_path, 9)
    rows = [{"bytes": None, "path": str(tmp_path / "x.png")}, {"bytes": b"broken", "path": "b.png"}, None]
    source = open_data(parquet(tmp_path / "p.parquet", {"img": rows, "class": ["b", None, "a"]}), split="all")
    first, second, third = source.read_many(np.arange(3))
    assert int(first[0, 0, 0]) == 9
    assert isinstance(second, Unreadable)
    assert str(third) == "holds neither bytes nor a path"
    assert (labels(source), source.classes, source.where(1)) == ([1, -1, 0], ("a", "b"), "b.png")
    with pytest.raises(DataError, match=r"no column of images in .*; it has text \(.*string\)"):
        open_data(parquet(tmp_path / "t.parquet", {"text": ["a"]}))
    audio = {"audio": [{"bytes": b"RIFF", "path": None}]}
    with pytest.raises(DataError, match="no column of images"):
        open_data(parquet(tmp_path / "a.parquet", audio, {"audio": {"_type": "Audio"}}))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read as parquet"):
        open_data(tmp_path / "bad.parquet")


@pytest.mark.usefixtures("no_network")
def test_what_datasets_saves_to_disk(tmp_path: Path) -> None:
    columns = {"image": [image(v) for v in range(4)], "label": [0, 1, 0, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["x", "y"]))
    made = datasets.Dataset.from_dict(columns, features=features)
    made.save_to_disk(tmp_path / "one")
    assert values(open_data(tmp_path / "one", split="all")) == [0, 1, 2, 3]
    datasets.DatasetDict(train=made, test=made.select([3, 2])).save_to_disk(tmp_path / "two")
    train, test = open_splits(tmp_path / "two")
    assert (values(train), values(test), test.classes) == ([0, 1, 2, 3], [3, 2], ("x", "y"))


def test_hub_names_are_opened_by_split(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, config: str | None, cache_dir: str) -> Any:
        asked.append((path, config))
        files = {"train": [str(f) for f in sorted(tables.glob("train*"))], "test": str(*tables.glob("test*"))}
        return datasets.load_dataset("parquet", data_files=files, cache_dir=cache_dir)

    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: real(*a, **k) if a[0] == "parquet" else load(*a, **k))
    train, test = open_splits("someone/pets:small")
    assert asked[0] == ("someone/pets", "small")
    assert (values(train), values(test)) == ([0, 1, 2, 3, 4, 5, 6], [7, 8])

    def missing(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/pets' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(DataError, match=r"cannot get 'someone/pets' .*: Couldn't reach 'someone/pets' on the Hub$"):
        open_data("someone/pets")


@pytest.mark.parametrize("shape", [(12, 6, 8), (12, 6, 8, 3), (12, 3, 6, 8), (12, 20, 10, 5)])
def test_an_array_is_many_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.save(tmp_path / "x.npy", array)
    source = open_data(tmp_path / "x.npy")
    found = np.stack(source.read_many(np.arange(12)))
    expected = array[:, None].repeat(3, 1) if len(shape) == 3 else array.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, array if shape == (12, 3, 6, 8) else expected)
    assert source.native == found.shape[1:]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(5), found[5])
    np.save(tmp_path / "x.npy", np.zeros(5))
    with pytest.raises(DataError, match=r"shape \(5,\); images are n h w"):
        open_data(tmp_path / "x.npy")


class Pairs(torch.utils.data.Dataset):
    """(PIL image, label) pairs of several sizes; the third cannot be opened."""

    targets = (0, 1, 1, 0)
    classes = ("no", "yes")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        if i == 2:
            raise OSError("disk on fire")
        return image(i, (8 + i, 6)), self.targets[i]


def test_torch_data_sets() -> None:
    source = open_data(Pairs(), split="all")
    assert (labels(source), source.classes, source.native) == ([0, 1, 1, 0], ("no", "yes"), None)
    assert source.read(3).shape == (3, 6, 11)
    assert str(source.read_many(np.array([2]))[0]) == "OSError: disk on fire"
    assert source.where(2) == "Pairs[2]"
    part = open_data(torch.utils.data.Subset(Pairs(), [3, 1]), split="all")
    assert (labels(part), values(part)) == ([0, 1], [3, 1])
    with pytest.raises(DataError, match="TensorDataset is empty"):
        open_data(torch.utils.data.TensorDataset(torch.zeros(0, 3, 4, 4)))
    with pytest.raises(DataError, match="ChainDataset has no positions"):
        open_data(torch.utils.data.ChainDataset([]))


def test_tensors_in_memory_have_a_native_size_and_need_no_cache() -> None:
    images = torch.arange(2 * 3 * 6 * 8, dtype=torch.uint8).reshape(2, 3, 6, 8)
    source = open_data(torch.utils.data.TensorDataset(images, torch.tensor([4, 2])), split="all")
    assert (source.native, labels(source)) == ((3, 6, 8), [4, 2])
    np.testing.assert_array_equal(source.read(1), images[1].numpy())
    assert source.resident  # type: ignore[attr-defined]
    halves = open_data(torch.utils.data.TensorDataset(torch.full((2, 1, 6, 8), 0.5)), split="all")
    assert np.unique(halves.read(0)).tolist() == [128]
    with pytest.raises(
        DataError, match=r"no readable image among the 2 of TensorDataset; the first holds floats from -0.5"
    ):
        open_data(torch.utils.data.TensorDataset(torch.full((2, 1, 6, 8), -0.5)))


def test_torchvision_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*; get it once: python -c .*CIFAR10\('.*', download=True"):
        open_data("cifar10")
    names = ["ant/image_0001.jpg", "owl/image_0001.jpg", "BACKGROUND_Google/image_0001.jpg"]
    folder_of(tmp_path / "caltech101/101_ObjectCategories", names)
    source = open_data(f"Caltech101:{tmp_path}", split="all")
    assert (source.name, len(source), labels(source)) == ("caltech101", 2, [0, 1])


def test_the_world_and_its_size() -> None:
    train, test = open_splits("world:40", image_size=32)
    assert (len(train), len(test), train.native) == (40, 8, (3, 32, 32))
    assert (len(open_data("world")), len(open_data("world", split="test"))) == (5000, 1000)
    with pytest.raises(DataError, match="'world:many' asks for 'many' images"):
        open_data("world:many")


@pytest.mark.slow
def test_real_cifar10(real_data: Path) -> None:
    train, test = open_splits(real_data / "cifar10", limit=300)
    assert (len(train), len(test), train.native) == (300, 300, (3, 32, 32))
    assert train.classes[:3] == ("airplane", "automobile", "bird")
    assert set(np.unique(train.labels)) == set(range(10))
    assert 60 < np.stack(train.read_many(np.arange(100))).mean() < 180


def test_real_photographs(real_data: Path) -> None:
    large = open_data(real_data / "caltech101-70")
    assert (len(large), large.native, len(large.classes)) == (4030, None, 70)
    loose = open_data(real_data / "single-image", split="all")
    shapes = {loose.where(i): loose.read(i).shape for i in range(3)}
    assert shapes["exif_portrait_6.jpg"] == (3, 1800, 1200)
    assert shapes["landscape_1.jpg"] == (3, 1200, 1800)
