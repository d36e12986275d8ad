"""Folders: what is found, which labels it gets, when the index is trusted, what the errors say."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data import folder, index, survey
from selfsight.data.folder import open_folder
from selfsight.data.protocol import DataError, Source, Unreadable


def make(path: Path, size: tuple[int, int] = (8, 6), colour: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)
    return path


def age(root: Path, seconds: float = 10) -> None:
    """As if nothing had been touched lately."""
    for directory, _, _ in os.walk(root):
        stat = os.stat(directory)
        os.utime(directory, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were really walked."""
    seen: list[str] = []
    walk = folder.walk

    def counted(root: str) -> index.Walked:
        seen.append(root)
        return walk(root)

    monkeypatch.setattr(folder, "walk", counted)
    return seen


def test_finds_images_at_any_depth_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a/x/1.png", "0.webp", "ä ö/ü.png"):
        make(tmp_path / name)
    make(tmp_path / "b/.hidden.png")
    make(tmp_path / ".cache/1.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "folder.png").mkdir()
    source = open_folder(tmp_path)
    assert [source.where(i) for i in range(len(source))] == ["0.webp", "a/x/1.png", "b/10.jpg", "b/2.PNG", "ä ö/ü.png"]
    assert isinstance(source, Source)
    assert source.read(4).shape == (3, 6, 8)


def test_labels_are_the_parent_folders(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "loose.png"):
        make(tmp_path / name)
    source = open_folder(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [-1, 0, 0, 1]


def test_one_folder_is_no_label(tmp_path: Path) -> None:
    make(tmp_path / "images/1.png")
    source = open_folder(tmp_path)
    assert source.labels is None
    assert source.classes == ()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path / "data/a/1.png")
    make(tmp_path / "elsewhere/2.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_folder(tmp_path / "data")
    assert [source.where(i) for i in range(len(source))] == ["a/1.png", "a/gone.png", "b/2.png"]
    with pytest.raises(Unreadable, match="no such file"):
        source.read(1)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    os.rename(os.fsencode(make(tmp_path / "a.png")), os.path.join(os.fsencode(tmp_path), b"\xff\xfe.png"))
    source = open_folder(tmp_path)
    assert source.read(0).shape == (3, 6, 8)


def test_the_index_is_trusted_until_something_changes(tmp_path: Path, walks: list[str]) -> None:
    for name in ("a/1.png", "b/1.png"):
        make(tmp_path / name)
    age(tmp_path)
    first = open_folder(tmp_path)
    assert len(open_folder(tmp_path)) == 2
    assert len(walks) == 1

    make(tmp_path / "b/2.png")
    assert len(open_folder(tmp_path)) == 3
    assert len(walks) == 2
    (tmp_path / "b/2.png").unlink()
    age(tmp_path)
    assert open_folder(tmp_path).fingerprint == first.fingerprint
    (tmp_path / "a/1.png").rename(tmp_path / "a/3.png")
    assert open_folder(tmp_path).fingerprint != first.fingerprint


def test_a_file_overwritten_in_place_is_noticed(tmp_path: Path, walks: list[str]) -> None:
    path = make(tmp_path / "a/1.png")
    age(tmp_path)
    first = open_folder(tmp_path)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    again = open_folder(tmp_path)
    assert len(walks) == 2
    assert again.fingerprint == first.fingerprint  # the same names and sizes
    assert again.cache_key != first.cache_key  # but what was decoded of it is of the past


def test_a_folder_touched_just_now_is_walked_again(tmp_path: Path, walks: list[str]) -> None:
    make(tmp_path / "1.png")
    open_folder(tmp_path)
    open_folder(tmp_path)
    assert len(walks) == 2  # a change within the clock's tick would not have shown
    age(tmp_path)
    open_folder(tmp_path)
    open_folder(tmp_path)
    assert len(walks) == 3


def test_same_names_elsewhere_share_the_fingerprint_but_no_cache(tmp_path: Path) -> None:
    sources = []
    for name, colour in (("one", 10), ("two", 20)):
        make(tmp_path / name / "a/1.bmp", colour=colour)
        make(tmp_path / name / "b/1.bmp", colour=colour)
        sources.append(open_folder(tmp_path / name))
    assert sources[0].fingerprint == sources[1].fingerprint
    assert sources[0].cache_key != sources[1].cache_key


def test_a_huge_folder_is_trusted_by_its_directories(
    tmp_path: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "CAREFUL", 2)
    monkeypatch.setattr(survey, "CAREFUL", 2)
    for i in range(5):
        make(tmp_path / f"{i}.png")
    age(tmp_path)
    assert open_folder(tmp_path).native is None  # likely, but not known
    assert len(open_folder(tmp_path).index.sizes) == 0
    make(tmp_path / "9.png")
    assert len(open_folder(tmp_path)) == 6
    assert len(walks) == 2


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    make(tmp_path / "a/1.png")
    age(tmp_path)
    path = open_folder(tmp_path).index.path
    for damaged in (b"", b"\xff" * 8, path.read_bytes()[:100]):
        path.write_bytes(damaged)
        assert open_folder(tmp_path).where(0) == "a/1.png"


def test_sources_pickle_as_paths(tmp_path: Path) -> None:
    for i in range(200):
        make(tmp_path / f"{i % 2}/{i}.bmp", colour=i)
    source = open_folder(tmp_path)
    pickled = pickle.dumps(source)
    assert len(pickled) < 5_000
    again = pickle.loads(pickled)
    assert again.fingerprint == source.fingerprint
    np.testing.assert_array_equal(again.read(7), source.read(7))


def test_one_native_size_only_if_every_header_says_so(tmp_path: Path) -> None:
    for i in range(400):
        make(tmp_path / f"{i:03}.bmp")
    (tmp_path / "broken.bmp").write_bytes(b"BM")
    assert open_folder(tmp_path).native == (3, 6, 8)
    assert open_folder(tmp_path, channels=1).native == (1, 6, 8)
    sampled = set(survey.sampled(401))
    missed = next(i for i in range(400) if i not in sampled)
    make(tmp_path / f"{missed:03}.bmp", size=(6, 8))
    assert open_folder(tmp_path).native is None


def test_large_images_have_no_native_size(tmp_path: Path) -> None:
    make(tmp_path / "1.png", size=(97, 20))
    assert open_folder(tmp_path).native is None


def test_arrays_decide_the_number_of_channels(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((5, 20, 10), i, dtype=np.uint8))
    make(tmp_path / "rgb.png", size=(10, 20))
    source = open_folder(tmp_path)
    assert source.channels == 5
    images = source.read_many(np.arange(4))
    assert [type(image) for image in images] == [np.ndarray] * 3 + [Unreadable]


def test_errors_say_what_and_where(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty; looked for \.bmp, .*\.webp"):
        open_folder(tmp_path / "empty")
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"no readable image among the 3 of .*; 0.jpg is not an image"):
        open_folder(tmp_path)


def test_the_cache_folder_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "data/1.png")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*; set SELFSIGHT_CACHE"):
        open_folder(tmp_path / "data")
