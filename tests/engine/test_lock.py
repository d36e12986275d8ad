"""One training in a folder: a second one is refused in one line, and a killed one holds it no longer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfsight.engine import lock
from selfsight.engine.lock import alone
from selfsight.errors import UserError

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with alone(folder):
        with (
            pytest.raises(UserError, match=r"another training is at work in .*new; wait for its end or end it"),
            alone(folder),
        ):
            raise AssertionError("two at once")
        with alone(tmp_path / "other"):
            pass
    with alone(folder):
        assert not list(folder.iterdir()), "nothing stays behind"


def test_a_killed_one_and_what_it_forked_hold_nothing(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from selfsight.engine.lock import alone
with alone(Path({str(tmp_path)!r})):
    worker = os.fork()
    os.write(1, f"{{worker}}\\n".encode())
    time.sleep(60)
"""
    training = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    worker = max(int(training.stdout.readline()) for _ in range(2))  # both are awake: the worker says 0
    try:
        with pytest.raises(UserError, match="another training"), alone(tmp_path):
            raise AssertionError("two at once")
        training.kill()
        training.wait()
        os.kill(worker, 0)  # it goes on for a while, as a worker that decodes does
        with alone(tmp_path):
            pass
    finally:
        training.kill()
        os.kill(worker, signal.SIGKILL)
        training.stdout.close()


@pytest.mark.parametrize("without", ["the module", "the disk"])
def test_without_locks_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(9, os.strerror(9))

    with alone(tmp_path), pytest.raises(UserError, match="another training is at work"), alone(tmp_path):
        pass  # what the same call meets where there are locks
    if without == "the module":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with alone(tmp_path), alone(tmp_path):
        (tmp_path / "trained").touch()
    assert (tmp_path / "trained").exists()
    assert not lock._held, "a handle stays open"


def test_what_is_no_folder_is_for_others_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with alone(tmp_path / "file"), alone(tmp_path / "file" / "run"):
        assert not lock._held
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
