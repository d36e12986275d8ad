"""A run's small files, read back by somebody who cannot know who wrote them: plain values of known kinds.

Nothing in them is executed, and a file that is damaged or made up is refused in one line.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from selfsight.errors import UserError, unknown
from selfsight.flags import Flags, flags_from
from selfsight.recipes import catalogue

_SETTINGS: Mapping[str, Any] = {
    "method": str,
    "flags": dict,
    "hyper": dict,
    "resolved": dict,
    "data": dict,
    "machine": dict,
    "imported": dict,
    "resolved.image_size": int,
    "resolved.backbone": str,
    "resolved.backbone_options": dict,
    "data.name": str,
    "data.samples": int,
    "data.fingerprint": str,
    "data.native": list[int],
    "data.classes": list[str],
    "hyper.classes": list[str],
    "hyper.pretext": dict,
}
"""Of what kind a run.yaml's values are, where it has them, by their path in the file."""
_MOST = 1_000_000
_LARGEST = 1 << 24
"""Bytes, far above what the largest run has written."""
_ALWAYS = ("method", "flags")
_NEEDED = ("resolved.image_size", "data.name", "data.samples", "data.fingerprint")


def read_plain(path: Path, what: str) -> Any:
    """The values in a file of YAML, or of JSON by its ending; ``what`` it should be is said where it is not."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)  # of a device, for instance, there is no end
        if len(content) > _LARGEST:
            raise ValueError("it is too large")
        text = content.decode()
        return _finite(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as {what} ({type(error).__name__})") from None


def _finite(values: Any) -> Any:
    """``values`` where they end: YAML's names for values allow lists that hold themselves, or grow by each mention."""
    stack, left = [values], _MOST
    while stack:
        left -= 1
        if left < 0:
            raise ValueError("its values never end")
        one = stack.pop()
        stack += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return values


def check_settings(settings: Mapping[str, Any], path: Path, *, whole: bool = False) -> None:
    """Refuses the settings of a run of which one is not of its kind; ``whole``: or lacks what opening it needs."""
    for name, kind in _SETTINGS.items():
        room, _, inner = name.rpartition(".")
        value = (settings.get(room) or {} if room else settings).get(inner)
        named = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
        if not named or not fits(value, kind if name in _ALWAYS or (whole and name in _NEEDED) else kind | None):
            raise _damaged(path, name, value)


def stored_flags(values: Mapping[str, Any], path: Path) -> Flags:
    """The flags that a run.yaml holds, each of its kind."""
    kinds: dict[str, Any] = {f.name: f.type for f in fields(Flags)} | {"data": str}
    _check(values, kinds, path, "flags")
    return flags_from({name: value for name, value in values.items() if value is not None})


def check_hyper(method: str, values: Mapping[str, Any], path: Path) -> None:
    """Refuses a run's hyper-parameters of which one is not of its kind, or none of the method's: each may be a flag."""
    kinds = {name: p.annotation for name, p in catalogue.hyper_parameters(method).items()}
    for name in values:
        if name not in kinds:
            raise UserError(f"{path}: {unknown(f'hyper-parameter of {method}', str(name), kinds)}")
    _check(values, kinds, path, "hyper")


def _check(values: Mapping[str, Any], kinds: Mapping[str, Any], path: Path, room: str) -> None:
    for name, value in values.items():
        fit = value is None or fits(value, kinds.get(name, Any), plain=True)
        if not isinstance(name, str) or not fit:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _damaged(path, f"{room}.{name}", value)


def fits(value: Any, kind: Any, *, plain: bool = False) -> bool:  # noqa: PLR0911 - one for each sort of annotation
    """Whether a value is of an annotation's kind; ``plain``: as a file holds it, a path as text, a tuple as a list.

    >>> fits(3, int | None), fits(True, int), fits([1, "x"], list[int]), fits("a", Literal["a", "b"])
    (True, False, False, True)
    """
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, str) and "\0" in value:  # no name and no path of any system
        return False
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one, plain=plain) for one in inner)
    if origin is Annotated:
        return fits(value, inner[0], plain=plain)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin in (list, tuple):
        return isinstance(value, list if plain else origin) and all(fits(one, inner[0], plain=plain) for one in value)
    numbers: Any = {int: Integral, float: Real}.get(kind)
    if numbers is not None:
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, str if plain and kind is Path else origin or kind)


def _damaged(path: Path, name: str, value: Any) -> UserError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    return UserError(f"{path} is damaged or was not written by selfsight: {name} is {shown}; copy it from a good copy")
