"""Memory that a step frees is there for the next, and not cleared by the system again."""

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from selfsight.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
torch.set_num_threads(1)
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a = torch.ones(16, 2**20)
    b = a + 1
    del a, b
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, sum(faults[10:]))
"""


def counted(how: str, **variables: str) -> tuple[str, int]:
    """What ``keep_freed_memory`` said, and the page faults of the last ten steps that allocate 128 MiB each."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], env=clean | variables, capture_output=True, text=True, check=True
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    said, kept = counted("kept")
    if said == "False":
        pytest.skip("this system's allocator is not glibc's")
    assert kept < 100
    assert counted("freed")[1] > 10 * 100


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_the_user_set_stays() -> None:
    assert counted("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
