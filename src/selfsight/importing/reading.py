"""A checkpoint's file, read without executing anything of it."""

import hashlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from selfsight.engine import checkpoint
from selfsight.errors import UserError


class _Unmade:
    """Stands in a checkpoint for an object of another class, which is not made: what it was given is dropped."""

    def __new__(cls, *given: Any) -> "_Unmade":
        return object.__new__(cls)

    def __init__(self, *given: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _UnmadeMapping:
    """The same for a class of mappings: torch fills plain ones only."""

    def __new__(cls, *given: Any) -> Any:
        return OrderedDict()


STAND_INS: list[Any] = [
    (_Unmade, "argparse.Namespace"),  # the settings of MAE, DINO, iBOT and BEiT
    (_UnmadeMapping, "yacs.config.CfgNode"),  # those of SimMIM
    (_Unmade, "numpy.dtype"),  # with the next two the learning rates in DINO's and iBOT's optimisers
    (_Unmade, "numpy.core.multiarray.scalar"),
    (_Unmade, "numpy._core.multiarray.scalar"),
]
"""What published checkpoints hold beside tensors, and what is made in its place, which does nothing."""


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What the file holds: tensors, and mappings of them. A file that would have to be executed is refused."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the checkpoint's file in it, model.safetensors for instance")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {path}: {_line(error)}") from error
    if _is_program(path):
        raise UserError(
            f"{path} is a TorchScript archive (OpenAI publishes CLIP so), a program that loading would execute; where "
            f"you trust it, torch.save(torch.jit.load('{path.name}').state_dict(), 'clip.pth') makes a file to import"
        )
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = checkpoint.read(path, legacy=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise UserError(f"{path} {_why(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors")
    return {str(key): value for key, value in content.items()}


def sha256(path: Path) -> str:
    """The file's digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_program(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _why(error: Exception) -> str:
    needs = re.search(r"GLOBAL (\S+)", str(error))
    if needs:
        return (
            f"needs {needs[1]}, which loading would execute, so it is refused; where you trust it, "
            "torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pth') makes a file to import"
        )
    return f"is no checkpoint that can be read without executing it ({type(error).__name__}: {_line(error)})"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
