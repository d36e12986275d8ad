"""A checkpoint taken apart: the backbone's weights, and by name and number what is left out of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from selfsight.errors import UserError
from selfsight.importing.layouts import BUFFERS, LAYOUTS, Layout, Which, find_layout, part_of, some

WRAPPERS = ("model", "state_dict", "module")
"""What official codes call the state dict in a file that holds other things too."""
ENCODERS = {"student": "base_encoder.", "teacher": "momentum_encoder."}
"""MoCo v3's two in one state dict."""


class LeftOut(NamedTuple):
    """A part of the file that is no backbone."""

    part: str
    tensors: int
    numbers: int
    keys: tuple[str, ...]
    """The first words of its keys."""

    def __str__(self) -> str:
        many = f"{self.tensors} tensor{'s' if self.tensors > 1 else ''}, {self.numbers:,} numbers"
        return f"{self.part} ({many})" if self.tensors else self.part


class Backbone(NamedTuple):
    """The weights of a backbone under its official names, and where they were found."""

    layout: str
    which: Which | None
    """Whose weights, where the file had two."""
    state: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """What is computed anew from sizes, and tells them."""
    left_out: tuple[LeftOut, ...]


def take_apart(content: Mapping[str, Any], path: Path, layout: str | None, which: Which | None) -> Backbone:
    """The backbone in what a file holds. Every tensor of the file is in it or in what is left out."""
    chosen, others = _wrapped(content, path)
    keys = {*others, *(key for state in chosen.values() for key in state)}
    name = find_layout(keys, layout, str(path))
    known = LAYOUTS[name]
    wanted = which or known.which
    taken = wanted if wanted in chosen else next(iter(chosen))
    state = chosen.pop(taken)
    whose, prefix = _place(state, taken, wanted, name)
    if which and which != whose:
        raise UserError(f"{path} holds one set of weights, so there is no {which} to choose; leave out --which")
    inside, parts, strange = _sorted_out(state, prefix, known)
    if strange:
        raise UserError(f"{path} holds {counted(strange)} that layout {name} does not know: {few(strange)}")
    left = [_part(part, found.items()) for part, found in (others | chosen).items()]
    left += [_part(part, found) for part, found in parts.items()]
    return Backbone(name, whose, inside, dict(parts.get(BUFFERS, ())), tuple(left))


def counted(keys: Sized) -> str:
    """So many tensors."""
    return f"{len(keys)} tensor{'s' if len(keys) != 1 else ''}"


def few(keys: Sequence[str]) -> str:
    """The first of the keys."""
    return ", ".join(keys[:4]) + ("..." if len(keys) > 4 else "")


def _wrapped(content: Mapping[str, Any], path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """The state dicts to choose from, without ``module.``, and all else by its name in the file."""
    own = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    rest = {key: value for key, value in content.items() if key not in own}
    if own and any("." in key for key in own):
        return {"": _bare(own)}, {key: dict(_tensors(value, key)) for key, value in rest.items()}
    found = {key: value for key, value in rest.items() if isinstance(value, Mapping) and _is_state(value)}
    names = [name for name in ENCODERS if name in found] or [name for name in WRAPPERS if name in found][:1]
    if not names:
        raise UserError(f"{path} holds no state dict: it has {some(content) or 'nothing'}")
    others = {key: dict(_tensors(value, key)) for key, value in content.items() if key not in names}
    for name in names:
        others |= {f"{name}.{key}": {} for key, value in found[name].items() if not isinstance(value, Tensor)}
    return {name: _bare(found[name]) for name in names}, others


def _is_state(value: Mapping[Any, Any]) -> bool:
    return (
        bool(value)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(tensor, Tensor) for tensor in value.values())
    )


def _bare(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, without the prefix of a parallel wrapper."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    parallel = all(key.startswith("module.") for key in tensors)
    return {key.removeprefix("module.") if parallel else key: value for key, value in tensors.items()}


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors inside, whatever holds them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{position}")


def _place(state: Mapping[str, Tensor], taken: str, wanted: str | None, layout: str) -> tuple[Which | None, str]:
    """Whose weights are taken, where a choice is, and what stands before the backbone's own keys."""
    there = {
        prefix for prefix in (*ENCODERS.values(), "backbone.", "encoder.") if any(k.startswith(prefix) for k in state)
    }
    if layout == "mocov3":
        whose = cast(Which, wanted)
        return (whose, ENCODERS[whose]) if ENCODERS[whose] in there else (None, "")
    prefix = {"simmim": "encoder.", "dino": "backbone.", "ibot": "backbone."}.get(layout, "")
    return (cast(Which, taken) if taken in ENCODERS else None), prefix if prefix in there else ""


def _sorted_out(
    state: Mapping[str, Tensor], prefix: str, layout: Layout
) -> tuple[dict[str, Tensor], dict[str, list[tuple[str, Tensor]]], list[str]]:
    """The backbone's tensors, those of known other parts, and the keys that are neither."""
    inside: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    strange: list[str] = []
    for key, tensor in state.items():
        own = key.removeprefix(prefix)
        part = part_of(own, layout)
        if part is not None:
            parts.setdefault(part, []).append((own, tensor))
        elif key.startswith(prefix):
            inside[own] = tensor
        else:
            strange.append(key)
    return inside, parts, strange


def _part(part: str, tensors: Iterable[tuple[str, Tensor]]) -> LeftOut:
    tensors = list(tensors)
    words = tuple(sorted({key.partition(".")[0] for key, _ in tensors}))
    return LeftOut(part, len(tensors), sum(tensor.numel() for _, tensor in tensors), words)
