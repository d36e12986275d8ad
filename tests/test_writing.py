"""What a killed process had begun to write goes with the next write of the same file; nothing else does."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from selfsight.encoders.store import replace_file
from selfsight.engine import checkpoint


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def save(path: Path, content: bytes) -> None:
    checkpoint.save(path, {"content": content})


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody is asked whether they live")
@pytest.mark.parametrize("write", [checkpoint.write_atomically, replace_file, save])
def test_what_dead_processes_left_of_a_file_goes_when_it_is_written(
    write: Callable[[Path, bytes], None], dead: int, tmp_path: Path
) -> None:
    path = tmp_path / "knn [1].json"
    kept = [f".{path.name}.{os.getppid()}", f".{path.name}.old", f".other.json.{dead}", path.name + f".{dead}"]
    gone = [f".{path.name}.{dead}", f".{path.name}.{os.getpid()}"]
    for name in kept + gone:
        (tmp_path / name).write_bytes(b"half")
    write(path, b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, path.name])
