"""Freed memory is kept for the next step.

glibc maps each large tensor anew and gives it back when it is freed; the system then clears every page of it again, at
each step. That cost a third of a CPU training's time where it was measured (a virtual machine; ``sys`` of ``time``).
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt's names for what is set, from malloc.h
_NEVER = 2**31 - 1  # bytes that may lie unused at the heap's end before they are given back: mallopt takes an int
_STEP = 64 * 2**20


def keep_freed_memory() -> bool:
    """For this process and from now on: no allocation has a mapping of its own, and the heap never shrinks.

    What the process holds stays at its highest. False where nothing was set: without glibc, or where the user has set
    glibc's own variables (``MALLOC_TRIM_THRESHOLD_`` and the like).
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        glibc = ctypes.CDLL("libc.so.6", use_errno=False)
        settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP))
        return all(glibc.mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError):
        return False
