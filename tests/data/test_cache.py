"""The decoded cache: filled once, shared, and never believed where a writer was cut off."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selfsight.data import cache
from selfsight.data.cache import DecodedCache, beside, is_small, write_beside
from selfsight.data.protocol import DataError, Unreadable


class Counting:
    """A source of random images that counts what it decodes; image 3 cannot be read."""

    name, labels, classes, fingerprint = "counting", None, (), "f" * 16

    def __init__(self, n: int = 10, native: tuple[int, int, int] = (3, 5, 7)) -> None:
        self.n, self.native, self.decoded = n, native, []

    def __len__(self) -> int:
        return self.n

    def read(self, position: int) -> np.ndarray:
        return np.random.default_rng(position).integers(0, 256, self.native).astype(np.uint8)

    def read_many(self, positions: np.ndarray) -> list:
        self.decoded += positions.tolist()
        return [Unreadable("is broken") if p == 3 else self.read(p) for p in positions.tolist()]

    def where(self, position: int) -> str:
        return str(position)


def same(images: list, source: Counting, positions: list[int]) -> None:
    for image, position in zip(images, positions, strict=True):
        if position == 3:
            assert isinstance(image, Unreadable)
        else:
            np.testing.assert_array_equal(image, source.read(position))


def test_each_image_is_decoded_once_and_the_next_process_reads_the_file(tmp_path: Path) -> None:
    source = Counting()
    held = DecodedCache(source, tmp_path)
    same(held.read_many(np.array([4, 3, 9])), source, [4, 3, 9])
    same(held.read_many(np.array([9, 4, 5])), source, [9, 4, 5])
    assert source.decoded == [4, 3, 9, 5]
    other = Counting()
    same(DecodedCache(other, tmp_path).read_many(np.arange(10)), other, list(range(10)))
    assert sorted(other.decoded) == [0, 1, 2, 3, 6, 7, 8]


def test_the_file_is_sparse_and_named_by_what_it_holds(tmp_path: Path) -> None:
    first = DecodedCache(Counting(5000), tmp_path).path
    assert first.stat().st_size > 5000 * 105
    assert first.stat().st_blocks * 512 < 50_000
    renamed = Counting(5000)
    renamed.cache_key = "other"
    paths = {DecodedCache(s, tmp_path).path for s in (renamed, Counting(4999), Counting(5000, (1, 5, 7)))}
    assert len({first, *paths}) == 4


def test_a_row_cut_off_by_a_kill_is_decoded_again(tmp_path: Path) -> None:
    """The writer is killed after half of the row; then, worse, a stamp is there and half of the row is not."""
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_cache import Counting, DecodedCache
import numpy as np
from pathlib import Path
held = DecodedCache(Counting(), Path({str(tmp_path)!r}))
held.read_many(np.array([1]))
write = os.pwrite
def half(file, data, offset):
    write(file, bytes(data)[: len(data) // 2], offset)
    os.kill(os.getpid(), {int(signal.SIGKILL)})
os.pwrite = half
held.read_many(np.array([2]))
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    source = Counting()
    held = DecodedCache(source, tmp_path)
    row = held._rows[2].copy().reshape(-1)
    assert row[:52].any()
    assert not row[52:].any()
    same(held.read_many(np.array([1, 2])), source, [1, 2])
    assert source.decoded == [2]

    with held.path.open("r+b") as file:  # a machine that dies may keep the page of the stamp and lose that of the row
        file.seek(held._start + 2 * 105 + 50)
        file.write(bytes(55))
    source = Counting()
    held = DecodedCache(source, tmp_path)
    same(held.read_many(np.array([1, 2])), source, [1, 2])
    assert source.decoded == [2]


def test_a_changed_file_does_not_break_a_batch(tmp_path: Path) -> None:
    source = Counting()
    held = DecodedCache(source, tmp_path)
    source.read = lambda position: np.zeros((3, 6, 7), dtype=np.uint8)  # type: ignore[method-assign]
    (image,) = held.read_many(np.array([0]))
    assert str(image) == "is 3x6x7 where all were 3x5x7; has the file been changed?"


def test_a_full_disk_costs_the_cache_and_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Counting()
    held = DecodedCache(source, tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "pwrite", full)
    same(held.read_many(np.arange(10)), source, list(range(10)))
    same(held.read_many(np.arange(10)), source, list(range(10)))
    assert len(source.decoded) == 20


def test_only_small_sources_of_one_size_are_cached() -> None:
    assert is_small(Counting(native=(3, 96, 96)))
    assert not is_small(Counting(native=(3, 97, 20)))
    source = Counting()
    source.native = None  # type: ignore[assignment]
    assert not is_small(source)


def test_what_a_killed_process_had_begun_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "f.arrow"
    script = f"""
import time
from pathlib import Path
from selfsight.data.cache import beside
with beside(Path({str(path)!r})) as new:
    new.write_bytes(b"half")
    print("begun", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "begun\n"
        write_beside(path, [b"whole"])
        assert len(os.listdir(tmp_path)) == 2, "what one that lives has begun is its own"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with beside(path) as one, beside(path) as other:  # of this process too
        one.write_bytes(b"one")
        other.write_bytes(b"other")
        assert {path.name, one.name, other.name} == {*os.listdir(tmp_path)}
    assert os.listdir(tmp_path) == ["f.arrow"]
    assert path.read_bytes() == b"one"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_beside(path, [b"old"])

    def breaks():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beside(path, breaks())
    assert path.read_bytes() == b"old"
    with pytest.raises(DataError, match=r"cannot write .*No space left"), beside(path):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == ["f"]
