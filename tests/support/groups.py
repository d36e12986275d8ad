"""Starts `two_processes.py` once a rank, and reads what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def together_and_alone(
    folder: Path, *, world: int, steps: int, micro: int = 1, only: tuple[str, ...] = (), seconds: float = 600
) -> dict[str, dict[str, Any]]:
    """How far recipes trained by ``world`` processes are from the same trained by one, for each recipe."""
    program = Path(__file__).with_name("two_processes.py")
    meeting, out = folder / "meeting", folder / "out.json"
    words = [str(meeting), str(out), str(world), str(steps), str(micro), *only]
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), *words],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=seconds)[1].decode() for process in started]
    finally:
        for process in started:  # one that waits for another must not outlive the test
            process.kill()
            process.communicate()
    assert all(process.returncode == 0 for process in started), "\n".join(errors)[-3000:]
    return json.loads(out.read_text())
