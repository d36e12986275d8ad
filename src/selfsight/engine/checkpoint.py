"""Checkpoints: written beside and renamed, loaded with ``weights_only``, and only where no bit of them has changed."""

import errno
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsight.errors import UserError
from selfsight.writing import beside, is_another

FORMAT = 1
_BESIDE = re.compile(
    r"\.(?:run\.yaml|(?:last|best)\.pt|encoder\.(?:safetensors|json)|\w+\.csv|report\.html)\.(\d+)", re.ASCII
)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file so that it is whole or not there at all."""
    new = beside(path)
    try:
        with open(new, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """What dead processes had begun to write in a run's folder, and nobody has written whole since."""
    found = [(path, _BESIDE.fullmatch(path.name)) for path in (*folder.glob(".*"), *folder.glob("checkpoints/.*"))]
    return [path for path, match in found if match and not is_another(int(match[1]))]


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; on a full disk the last good one stays and the error says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    try:
        with open(new, "wb") as out:
            torch.save({"format": FORMAT, **state}, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        if is_full(error):
            kept = "the last good one is kept" if path.exists() else "none was saved before"
            text = f"the disk of {path.parent} is full: no checkpoint written, {kept}; free space, then --resume"
            raise UserError(text) from error
        raise
    finally:
        new.unlink(missing_ok=True)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is at the bottom of ``error``: torch's writer raises its own error over it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


FOLDER = 0x10
"""The bit by which an archive's list marks a folder; of such a part torch reads nothing, and says nothing of it."""


def read(path: Path, *, legacy: bool = False) -> Any:
    """What ``torch.save`` wrote to ``path``; nothing in it is executed.

    torch compares no checksums, though it writes them: they are compared here. What the file's parts claim to be is no
    more than the file: none is compressed, so none can grow. ``legacy`` takes the form of before torch 1.6 as well,
    which is no archive and has none.
    """
    if not legacy or zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile("its parts are larger than itself")
            if any(part.external_attr & FOLDER for part in archive.infolist()):
                raise zipfile.BadZipFile("a part of it says that it is a folder")
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is not what was written")
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; one that is cut short, damaged, foreign or newer is refused in one line."""
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}; start the run anew with --overwrite")
    try:
        state = read(path)
    except Exception as error:  # zipfile and torch raise a dozen kinds for a damaged archive
        if isinstance(error, MemoryError) or "t allocate memory" in str(error):
            raise UserError(f"not enough memory to read the checkpoint {path}; free some, then go on") from error
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # those two are of wild offsets
            raise UserError(
                f"the system gives no access to the checkpoint {path} ({error.strerror}), which may be sound; mend "
                "that (its rights, its disk, the number of open files), then go on"
            ) from error
        best = path.with_name("best.pt")
        other = f"copy {best} over it and --resume, or " if path.name == "last.pt" and best.exists() else ""
        raise UserError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: it is cut short, damaged or no "
            f"checkpoint); {other}start the run anew with --overwrite"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UserError(f"{path} is no checkpoint of selfsight")
    if state["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer selfsight (format {state['format']}); upgrade selfsight")
    return state


def fill_(method: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Gives ``method`` the weights of the checkpoint at ``path``; one of other settings is refused in one line."""
    try:
        method.load_state_dict(state["method"])
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(
            f"the checkpoint {path} does not fit the run's settings ({' '.join(lines[:2])}); "
            "copy both from where the run was made"
        ) from error
