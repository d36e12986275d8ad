"""Files that execute what their writer chose, for whoever loads them as Python's own pickles."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Payload:
    """Makes a folder where it is unpickled: who finds the folder knows that something was executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.makedirs, (str(self.marker), 0o777, True)


class Evaluated(Payload):
    """The same by ``eval``, which lists of forbidden functions forget."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"__import__('os').makedirs({str(self.marker)!r}, exist_ok=True)",)


def _zipped(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _legacy(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _array(content: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([content], dtype=object), allow_pickle=True)
    return out.getvalue()


def _climbing(content: Any, outside: Path) -> bytes:
    """An archive whose parts want to lie elsewhere, for who unpacks it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("archive/data.pkl", "../climbed", str(outside.absolute()), "archive/../../climbed"):
            archive.writestr(name, pickle.dumps(content))
    return out.getvalue()


def hostile_files(marker: Path) -> Mapping[str, bytes]:
    """Contents of files by what they are."""
    first, second = Payload(marker), Evaluated(marker)
    return {
        "a pickle": pickle.dumps(first),
        "a pickle that evaluates": pickle.dumps(second),
        "a checkpoint": _zipped({"format": 1, "step": first, "method": {"w": second}}),
        "a state dict": _zipped({"w": torch.zeros(2), "x": first}),
        "a module": _zipped(first),
        "an old checkpoint": _legacy({"format": 1, "method": {"w": second}}),
        "an array of objects": _array(first),
        "an archive that climbs": _climbing(first, marker.with_name("also-climbed")),
    }
