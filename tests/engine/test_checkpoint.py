"""Checkpoints: atomic; refused in one line when damaged, foreign or newer; the last good one survives a full disk."""

import errno
import io
import os
from pathlib import Path

import pytest
import torch

from selfsight.engine import checkpoint
from selfsight.errors import UserError


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, {"step": 7, "method": {"w": torch.arange(3.0)}})
    state = checkpoint.load(path)
    assert state["step"] == 7
    assert torch.equal(state["method"]["w"], torch.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="is full: no checkpoint written, the last good one is kept"):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_disk_that_fills_up_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Torch's writer then raises an error of its own, over that of the disk."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    class Disk(io.FileIO):
        written = 0

        def write(self, data: bytes) -> int:
            self.written += len(data)
            if self.written > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(checkpoint, "open", Disk, raising=False)
    with pytest.raises(UserError, match="is full: no checkpoint written, the last good one is kept"):
        checkpoint.save(path, {"step": 2, "w": torch.zeros(100_000)})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_one_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1, "w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cut short, damaged or no checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "no access .* (Permission denied), which may be sound"),
        (OSError(errno.EIO, "Input/output error"), "no access .* (Input/output error), which may be sound"),
        (OSError(errno.EMFILE, "Too many open files"), "no access .* (Too many open files), which may be sound"),
        (MemoryError(), "not enough memory to read the checkpoint"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory to read the checkpoint"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_one_that_is_out_of_reach_is_not_called_damaged(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def out_of_reach(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", out_of_reach)
    with pytest.raises(UserError, match=told.replace("(", r"\(").replace(")", r"\)")) as raised:
        checkpoint.load(path)
    assert "--overwrite" not in str(raised.value)


@pytest.mark.parametrize("error", [OSError("Invalid data stream"), OSError(errno.EINVAL, "Invalid argument")])
def test_errors_of_the_system_that_a_damaged_one_gives(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offset below 0, a stream that is no bz2."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def damaged(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", damaged)
    with pytest.raises(UserError, match="cut short, damaged or no checkpoint"):
        checkpoint.load(path)


def test_newer_and_foreign_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match="no checkpoint of selfsight"):
        checkpoint.load(path)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save(path, {"step": 1})
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer selfsight"):
        checkpoint.load(path)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "x": _Runs()}, path)
    with pytest.raises(UserError, match="UnpicklingError"):
        checkpoint.load(path)
