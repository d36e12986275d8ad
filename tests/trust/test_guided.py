"""Our own parsers under a guided fuzzer, where it can be installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

GUIDED = Path(__file__).parents[1] / "support" / "guided.py"


@pytest.mark.trust
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no build for this machine")
def test_parsers_under_a_guided_fuzzer(tmp_path: Path, promise) -> None:
    """200,000 inputs, each chosen by which of the parsers' branches the ones before it reached."""
    runs = 200_000
    said = subprocess.run(
        [sys.executable, str(GUIDED), str(tmp_path), str(runs)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = [path.name for path in tmp_path.iterdir() if path.is_file()]
    fine = said.returncode == 0 and not found
    promise(f"{runs:,} inputs of a guided fuzzer make our parsers answer or refuse, and nothing else")(
        fine, f"{said.returncode} {found} {said.stderr[-1500:]}"
    )
