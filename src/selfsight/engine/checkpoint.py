"""Checkpoints: written beside and renamed, loaded with ``weights_only``."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfsight.errors import UserError

FORMAT = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file so that it is whole or not there at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; on a full disk the last good one stays and the error says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as out:
            torch.save({"format": FORMAT, **state}, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        if is_full(error):
            kept = "the last good one is kept" if path.exists() else "none was saved before"
            text = f"the disk of {path.parent} is full: no checkpoint written, {kept}; free space, then --resume"
            raise UserError(text) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is at the bottom of ``error``: torch's writer raises its own error over it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; one that is cut short, foreign or newer is refused in one line."""
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}; start the run anew with --overwrite")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged archive
        raise UserError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: it is cut short or no checkpoint); "
            "start the run anew with --overwrite"
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is no checkpoint of selfsight")
    if state["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer selfsight (format {state['format']}); upgrade selfsight")
    return state
