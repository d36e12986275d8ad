"""Files that are whole or not there at all: written beside, under a name that tells by whom, and then renamed."""

import glob
import os
import re
from contextlib import suppress
from pathlib import Path


def beside(path: Path) -> Path:
    """Where this process writes ``path`` before it renames it; what dead ones left of the same file is deleted."""
    start = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        process = left.name.removeprefix(start)
        if re.fullmatch(r"\d+", process, re.ASCII) and not is_another(int(process)):
            with suppress(OSError):
                left.unlink()
    return path.with_name(f"{start}{os.getpid()}")


def is_another(process: int) -> bool:
    """Whether ``process`` is alive and not this one; where that cannot be asked without harm, it is."""
    if os.name != "posix":
        return process != os.getpid()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()
