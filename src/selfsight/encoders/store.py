"""An encoder on disk: ``encoder.safetensors``, whose keys are the model's own, and ``encoder.json``."""

import json
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone, Wrapped
from selfsight.encoders.build import build_encoder, has_small_stem
from selfsight.errors import UserError
from selfsight.writing import beside

WEIGHTS, FACTS = "encoder.safetensors", "encoder.json"
CHECKSUM = "crc32"
FORMAT = 1
_KINDS: Mapping[str, tuple[Any, str]] = {
    "format": (int, "number"),
    "name": (str, "word"),
    "image_size": (int | None, "number"),
    "channels": (int | None, "number"),
    "options": (dict, "mapping"),
    CHECKSUM: (int | None, "number"),
}
_FETCHES = frozenset({"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
"""Options by which timm reads other files than the two of an encoder."""


def save_encoder(encoder: nn.Module, folder: Path | str, **meta: Any) -> Path:
    """Writes the encoder's weights and facts into ``folder``, each file whole or not at all; returns the folder.

    Args:
        encoder: what ``build_encoder`` or ``wrap`` made.
        folder: is made if missing.
        meta: further facts for ``encoder.json`` (``method``, ``normalise``...), in JSON's types.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(encoder, Backbone | Wrapped):
        raise UserError(f"cannot save a {type(encoder).__name__} as an encoder; wrap(module, width) makes one of it")
    facts = {
        "format": FORMAT,
        "name": encoder.name,
        "image_size": encoder.image_size,
        "channels": encoder.channels,
        "width": encoder.width,
        "stride": encoder.stride,
        "options": encoder.options,
        "timm": encoder.arguments,
        "small_stem": has_small_stem(encoder),
        "normalise": None,
        **meta,
    }
    content = save(weights(encoder))
    text = json.dumps({**facts, CHECKSUM: zlib.crc32(content)}, indent=2).encode()
    replace_file(folder / FACTS, text)
    replace_file(folder / WEIGHTS, content)  # last: who finds the weights finds their facts
    return folder


def load_encoder(folder: Path | str, *, into: nn.Module | None = None) -> nn.Module:
    """The encoder that ``save_encoder`` wrote, in training mode, on the CPU.

    Args:
        folder: holds both files.
        into: an encoder to load into, for one that was made by ``wrap``.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    encoder = into if into is not None else _rebuild(folder, facts)
    try:
        state = _read_weights(folder / WEIGHTS, facts.get(CHECKSUM))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS} ({error}); copy it again or export anew") from error
    try:
        model: Any = encoder.model
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{folder / WEIGHTS} does not fit {facts['name']}: {' '.join(lines[1:2])}") from error
    return encoder


def _read(path: Path) -> dict[str, Tensor]:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # a folder's name need be no text, but safetensors asks for one
        return load(path.read_bytes())
    return load_file(path)


def read_facts(folder: Path) -> dict[str, Any]:
    """The contents of ``encoder.json``."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"no encoder in {folder}: {FACTS} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not an encoder's: it holds a {type(facts).__name__}")
    for name, (kind, words) in _KINDS.items():
        missing = name not in facts and name != CHECKSUM  # which earlier versions did not write
        if missing or not isinstance(facts.get(name), kind) or isinstance(facts.get(name), bool):
            raise UserError(f"{path} is not an encoder's, or damaged: its {name} is no {words}; copy or export it anew")
    if asked := (_FETCHES & facts["options"].keys()) or {":"} & {*facts["name"]}:
        raise UserError(f"{path} asks for other files or the network ({', '.join(asked)}): no file of selfsight's does")
    if facts["format"] > FORMAT:
        raise UserError(f"{path} has format {facts['format']}, newer than {FORMAT}; update selfsight")
    return facts


def weights(encoder: nn.Module) -> dict[str, Tensor]:
    """The model's own state dict, contiguous, on the CPU, each tensor with memory of its own."""
    model: Any = encoder.model
    whole = model.state_dict().items()
    return {name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in whole}


def replace_file(path: Path, content: bytes) -> None:
    """Writes beside ``path`` and renames: a reader finds the old file or the new one, never half."""
    new = beside(path)
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _read_weights(path: Path, checksum: int | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which itself has no checksum: encoder.json has it."""
    if checksum is not None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if zlib.crc32(content) != checksum:
                raise OSError(f"it is damaged, or not the one that {FACTS} beside it was written with")
    return _read(path)


def _rebuild(folder: Path, facts: Mapping[str, Any]) -> Backbone:
    if facts["image_size"] is None or facts["channels"] is None:
        raise UserError(
            f"{folder} holds a module of your own, {facts['name']}; load_encoder(folder, into=wrap(...)) loads into it"
        )
    given = {"name", "image_size", "channels", "pretrained"} & facts["options"].keys()
    if given:
        raise UserError(f"{folder / FACTS} is not an encoder's: its options name {', '.join(sorted(given))}")
    shape = {"image_size": facts["image_size"], "channels": facts["channels"]}
    try:
        return build_encoder(facts["name"], **shape, **facts["options"])
    except (TypeError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"{folder / FACTS} has what {facts['name']} does not take ({str(error).partition(chr(10))[0]})"
        ) from error
