"""What ``--data`` says becomes a source: a folder, a list, tables, a Hub or torchvision name, an array, the world."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch.utils.data import Dataset

from selfsight.data.arrays import Stack, TorchData
from selfsight.data.catalogue import NAMES, at_home, torchvision_parts
from selfsight.data.folder import is_folder, open_folder
from selfsight.data.listing import labelled, open_list
from selfsight.data.protocol import DataError, Source
from selfsight.data.single import Single
from selfsight.data.splits import divided, in_a_row, limited, same_classes, split_of
from selfsight.data.table import files_by_split, hub_files, open_tables
from selfsight.data.world import World
from selfsight.sizes import SMALL

Split: TypeAlias = Literal["train", "test", "all"]
Data: TypeAlias = str | Path | Dataset[Any] | Source

WORLD_TRAIN, WORLD_SIZE = 5_000, 64
_WORLD_MOST = 100_000_000  # whose labels and order a machine still holds
_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_TABLES, _LISTS = (".parquet", ".arrow"), (".txt", ".csv", ".tsv", ".lst")

_ORDER = ("train", "test", "validation")

Parts: TypeAlias = Mapping[str, Callable[[], Source]]
"""How to open each split that the data have, "train", "test", "validation", or "all" where they have none."""


def open_data(
    spec: Data,
    *,
    split: Split = "train",
    image_size: int | None = None,
    limit: int | None = None,
    labels: Path | None = None,
    seed: int = 0,
    channels: int | None = None,
) -> Source:
    """Opens ``spec`` as a source of images.

    ``spec`` is a folder of images (walked recursively), a list file, a parquet or Arrow file or a folder of them, a
    Hub name ``owner/name``, a torchvision name (``cifar10``, or ``cifar10:ROOT``), a .npy file, ``world`` or
    ``world:N``, ``single:PHOTO`` (crops of one photograph), a torch data set, or a source. ``image_size`` is the size
    of training, for what is rendered rather than read;
    ``limit`` a random choice keyed by ``seed``; ``labels`` a CSV of path and label; ``channels`` None takes what the
    data have.

    Where the data have a train and a test split (or validation), they are taken; else labelled data are divided 80/20
    within each class by a key that no seed changes, and unlabelled data are for training, all of them. Raises
    ``DataError``.

    >>> len(open_data("world", split="test", limit=100))
    100
    """
    parts = _parts(spec, image_size, channels)
    if labels is not None:
        parts = {which: partial(_labelled, part, labels) for which, part in parts.items()}
    held = next((which for which in ("test", "validation") if which in parts), None)
    if split == "all" or "train" not in parts or held is None:
        whole = in_a_row([parts[which]() for which in (*_ORDER, *(sorted(parts.keys() - _ORDER))) if which in parts])
        chosen = whole if split == "all" else divided(whole)[split == "test"]
    else:
        train = parts["train"]()
        chosen = train if split == "train" else same_classes(train, parts[held]())
    return limited(chosen, limit, seed=seed)


def open_splits(
    spec: Data,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    labels: Path | None = None,
    seed: int = 0,
    channels: int | None = None,
) -> tuple[Source, Source]:
    """Train and test of ``spec``, each of at most ``limit`` images; see ``open_data``."""
    how: dict[str, Any] = {
        "image_size": image_size,
        "limit": limit,
        "labels": labels,
        "seed": seed,
        "channels": channels,
    }
    return open_data(spec, split="train", **how), open_data(spec, split="test", **how)


def _labelled(part: Callable[[], Source], labels: Path) -> Source:
    return labelled(part(), labels)


def _parts(spec: Data, image_size: int | None, channels: int | None) -> Parts:
    if not isinstance(spec, (str, Path)):
        is_source = all(hasattr(spec, name) for name in ("read", "where", "fingerprint"))
        return {"all": lambda: spec if is_source else TorchData(spec, channels=channels)}  # pyright: ignore[reportReturnType]
    if str(spec) == "world" or str(spec).startswith("world:"):
        return _world(str(spec), image_size or WORLD_SIZE)
    if str(spec).startswith("single:"):
        return {"all": lambda: _single(str(spec), image_size or 224, channels)}
    if not str(spec):
        raise DataError(f"'{spec}' names no data; give a path, 'world', a torchvision name or a Hub name owner/name")
    path = at_home(spec)
    if path.is_dir():
        return _folder(path, channels)
    if path.is_file():
        return {"all": lambda: _file(path, channels)}
    return _named(str(spec), channels)


def _world(spec: str, size: int) -> Parts:
    count = spec.partition(":")[2] or str(WORLD_TRAIN)
    if not count.isdecimal() or len(count) > len(str(_WORLD_MOST)) or not 5 <= int(count) <= _WORLD_MOST:
        raise DataError(f"'{spec}' asks for '{count}' images; write world:N with a number of 5 to {_WORLD_MOST}")
    n = int(count)
    return {"train": lambda: World(n, size=size, split="train"), "test": lambda: World(n // 5, size=size, split="test")}


def _single(spec: str, size: int, channels: int | None) -> Source:
    path = at_home(spec.partition(":")[2])
    if not path.is_file():
        raise DataError(f"no photograph '{path}'; write single:PHOTO.jpg with the path of one image file")
    return Single(path, size=size if size <= SMALL else round(size * 8 / 7), channels=channels)


def _folder(path: Path, channels: int | None) -> Parts:
    if (path / "dataset_dict.json").is_file() or _holds_tables(path):
        return _tables(files_by_split(path), path.resolve().name, channels)
    with os.scandir(path) as entries:
        below = sorted(entry.name for entry in islice(entries, 1000) if is_folder(entry))
    found = {split: path / name for name in reversed(below) if (split := split_of(name)) and name.isalpha()}
    if "train" in found and len(found) > 1:
        return {split: partial(open_folder, folder, channels=channels) for split, folder in found.items()}
    return {"all": lambda: open_folder(path, channels=channels)}


def _holds_tables(path: Path) -> bool:
    """Whether parquet or Arrow files lie in the folder or right below it; a look at few entries, of many images."""
    with os.scandir(path) as entries:
        first = list(islice(entries, 1000))
    if any(entry.name.endswith(_TABLES) for entry in first):
        return True
    data = path / "data"
    return data.is_dir() and any(entry.name.endswith(_TABLES) for entry in islice(os.scandir(data), 1000))


def _tables(files: Mapping[str, list[Path]], name: str, channels: int | None) -> Parts:
    if not files:
        raise DataError(f"{name} should hold tables, but no parquet or Arrow file lies in it")
    return {
        split: partial(open_tables, found, name=f"{name} {split}", channels=channels) for split, found in files.items()
    }


def _file(path: Path, channels: int | None) -> Source:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return open_tables([path], name=path.stem, channels=channels)
    if suffix in _LISTS:
        return open_list(path, channels=channels)
    if suffix == ".npy":
        return Stack(path, channels=channels)
    raise DataError(
        f"cannot take {path} as data; give a folder of images, or a file of {', '.join((*_LISTS, *_TABLES, '.npy'))}"
    )


def _named(spec: str, channels: int | None) -> Parts:
    name, _, root = spec.partition(":")
    if name.lower() in NAMES:
        return torchvision_parts(name.lower(), root, channels)
    # what lies in an existing folder is a path that was mistyped: nothing is asked of the network for it
    if _HUB.fullmatch(spec) and spec[0] not in ".~" and not Path(spec.partition("/")[0]).exists():
        found = hub_files(spec)
        return _tables({split_of(split) or split: files for split, files in found.items()}, spec, channels)
    raise DataError(_missing(spec))


def _missing(spec: str) -> str:
    path = at_home(spec)
    beside = [entry.name for entry in islice(os.scandir(path.parent), 10_000)] if path.parent.is_dir() else []
    names = [*(str(path.with_name(name)) for name in beside), "world", *NAMES]
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else "give a path, 'world', a torchvision name or a Hub name owner/name"
    return f"no file, folder or data set '{spec}'; {hint}"
