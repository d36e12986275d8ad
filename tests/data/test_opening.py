"""What --data may say of folders, lists and labels: what it opens, which splits, and the errors."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from pixel_sources import folder_of, labels, values

from selfsight.data.opening import open_data, open_splits
from selfsight.data.protocol import DataError, Source, Unreadable


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pets", [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(10)])


def test_a_labelled_folder_is_divided_within_each_class(loose: Path) -> None:
    train, test = open_splits(loose)
    assert np.bincount(labels(train)).tolist() == [8, 8]
    assert np.bincount(labels(test)).tolist() == [2, 2]
    assert sorted(values(train) + values(test)) == list(range(20))
    assert values(open_data(loose, split="test", seed=9)) == values(test)  # no seed moves an image between the two
    assert values(open_data(str(loose), split="all")) == list(range(20))


def test_folders_of_few_images_lose_none(tmp_path: Path) -> None:
    """One folder a patient is no class: none of its images is kept from training."""
    names = [f"patient{p}/{i}.png" for p in range(6) for i in range(1 + p % 2)]
    train, test = open_splits(folder_of(tmp_path / "scans", names))
    assert (len(train), len(test)) == (9, 0)
    mixed = [*names, *(f"many/{i}.png" for i in range(5))]
    train, test = open_splits(folder_of(tmp_path / "mixed", mixed))
    assert (len(train), len(test)) == (13, 1)


def test_an_unlabelled_folder_is_all_for_training(tmp_path: Path) -> None:
    train, test = open_splits(folder_of(tmp_path / "d", [f"{i}.png" for i in range(10)]))
    assert values(train) == list(range(10))
    assert len(test) == 2


def test_folders_named_train_and_test_are_the_splits(tmp_path: Path) -> None:
    names = ["train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png", "val/c/4.png"]
    train, test = open_splits(folder_of(tmp_path / "d", names))
    assert (values(train), labels(train), train.classes) == ([0, 1], [0, 1], ("a", "b"))
    assert (values(test), labels(test), test.classes) == ([2, 3, 4], [0, 1, -1], ("a", "b"))
    assert values(open_data(tmp_path / "d", split="all")) == [0, 1, 2, 3, 4]
    folder_of(tmp_path / "d", ["test/a/9.png", "test/b/9.png"])
    assert values(open_data(tmp_path / "d", split="test")) == [0, 1]


def test_limit_is_a_keyed_choice(loose: Path) -> None:
    chosen = values(open_data(loose, split="all", limit=7))
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 7
    assert chosen != list(range(7))
    assert values(open_data(loose, split="all", limit=7)) == chosen
    assert values(open_data(loose, split="all", limit=7, seed=1)) != chosen
    assert set(values(open_data(loose, split="all", limit=3))) <= set(chosen)
    assert len(open_data(loose, split="all", limit=99)) == 20
    with pytest.raises(DataError, match="a limit of 0 leaves no image"):
        open_data(loose, limit=0)


def test_a_part_answers_for_its_own_images(loose: Path) -> None:
    whole, part = open_data(loose, split="all"), open_data(loose, split="test")
    for source in (part, pickle.loads(pickle.dumps(part))):
        assert isinstance(source, Source)
        many = source.read_many(np.array([3, 1]))
        assert [int(i[0, 0, 0]) for i in many] == [values(part)[3], values(part)[1]]
        assert source.where(2) == whole.where(values(part)[2])
    assert part.fingerprint != whole.fingerprint
    assert part.native == whole.native == (3, 6, 8)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("list.txt", "pets/dog/3.png\npets/cat/0.png\n\n", ([13, 0], None, ())),
        ("list.txt", "pets/dog/3.png\tbig dog\npets/cat/0.png\tcat\n", ([13, 0], [0, 1], ("big dog", "cat"))),
        ("list.txt", "pets/dog/3.png 10\npets/cat/0.png 9\n", ([13, 0], [1, 0], ("9", "10"))),
        (
            "list.csv",
            "pets/dog/3.png,dog\npets/cat/0.png,cat\npets/cat/1.png,\n",
            ([13, 0, 1], [1, 0, -1], ("cat", "dog")),
        ),
        ("list.csv", "id,label,file\n7,b,pets/dog/3.png\n8,a,pets/cat/0.png\n", ([13, 0], [1, 0], ("a", "b"))),
        ("list.csv", "label,where\nb,pets/dog/3.png\na,pets/cat/0.png\n", ([13, 0], [1, 0], ("a", "b"))),
        ("list.tsv", "path\tlabel\npets/dog/3.png\tx\npets/cat/0.png\ty\n", ([13, 0], [0, 1], ("x", "y"))),
    ],
)
def test_list_files(loose: Path, name: str, text: str, expected: tuple) -> None:
    path = loose.parent / name
    path.write_text(text)
    source = open_data(path, split="all")
    assert (values(source), None if source.labels is None else labels(source), source.classes) == expected


def test_a_list_with_absolute_paths_blanks_and_missing_files(loose: Path) -> None:
    spaced = folder_of(loose.parent / "my photos", ["a b.png"])
    path = loose.parent / "list.txt"
    path.write_text(f"{spaced}/a b.png\nmy photos/a b.png\npets/gone.png\n")
    source = open_data(path, split="all")
    images = source.read_many(np.arange(3))
    assert isinstance(images[2], Unreadable)
    assert source.where(2) == "pets/gone.png"
    np.testing.assert_array_equal(images[0], images[1])
    path.write_text("my photos/a b.png\n")
    assert len(open_data(path, split="all")) == 1
    path.write_text("\n")
    with pytest.raises(DataError, match=r"list.txt lists no image"):
        open_data(path)


@pytest.mark.parametrize(
    "rows", ["cat/0.png,x\ndog/3.png,y\n", "img/dog/3.png,y\n/old/place/cat/0.png,x\n", "path,label\n0,x\n3,y\n"]
)
def test_labels_from_a_csv_by_path_name_or_stem(tmp_path: Path, rows: str) -> None:
    root = folder_of(tmp_path / "d", ["cat/0.png", "dog/3.png", "dog/7.png"])
    (tmp_path / "labels.csv").write_text(rows)
    source = open_data(root, split="all", labels=tmp_path / "labels.csv")
    assert source.classes == ("x", "y")
    assert labels(source) == [0, 1, -1]


def test_a_name_with_two_labels_gets_none(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "d", ["0.png", "1.png"])
    (tmp_path / "labels.csv").write_text("a/0.png,x\nb/0.png,y\nb/1.png,y\n")
    assert labels(open_data(root, split="all", labels=tmp_path / "labels.csv")) == [-1, 1]


def test_labels_that_do_not_fit(loose: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,label\nbirds/1.jpg,owl\n")
    with pytest.raises(DataError, match=r"no image of pets is named in .*: it says 'birds/1.jpg', .* like 'cat/0.png'"):
        open_data(loose, labels=path)
    path.write_text("cat/0.png\n")
    with pytest.raises(DataError, match=r"labels.csv holds no label; give it two columns"):
        open_data(loose, labels=path)
    with pytest.raises(DataError, match=r"cannot read .*nothing.csv"):
        open_data(loose, labels=tmp_path / "nothing.csv")


@pytest.mark.usefixtures("no_network")
def test_what_is_not_there(loose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(loose.parent)
    for spec, near in {
        "pest": "did you mean 'pets'?",
        str(loose.parent / "petz"): f"did you mean '{loose}'?",
        "pets/catt": "did you mean 'pets/cat'?",
        "cifra10": "did you mean 'cifar10'?",
        "./someone/elsewhere": "give a path, 'world', a torchvision name or a Hub name",
    }.items():
        with pytest.raises(DataError) as error:
            open_data(spec)
        assert str(error.value).startswith(f"no file, folder or data set '{spec}'; ")
        assert near in str(error.value)
    with pytest.raises(DataError, match=r"cannot take .*0.png as data; give a folder of images"):
        open_data(loose / "cat/0.png")
