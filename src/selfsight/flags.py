"""The flags of a pretraining run, one dataclass for the command line, the Python face and run.yaml; no torch here."""

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

from selfsight.errors import UserError, unknown
from selfsight.recipes import catalogue

Precision = Literal["auto", "32", "bf16", "16"]
Device = Literal["auto", "cpu", "cuda"]
Optimiser = Literal["paper", "adamw"]
OBJECT = "python:"
"""Stands in run.yaml before the type of data that only the Python program has."""
Logger = Literal["tensorboard", "wandb", "mlflow", "none"]
SEEDS = 1 << 63
"""What torch and the keyed numbers take."""
_NO_NAME = "backbone takes a name; a module of your own goes through wrap() and a recipe, see README"
RUNS = ("tokenizer", "hybrid")
"""Hyper-parameters that name another run: run.yaml keeps paths that hold from any folder."""
DEVICES, PRECISIONS, OPTIMISERS, LOGGERS = map(get_args, (Device, Precision, Optimiser, Logger))


_LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("image_size", "channels", "patch_size"), (1, 65_536)),  # above is a slip
    "epochs": (1, 10**9),
    **dict.fromkeys(("batch_size", "accumulate", "devices", "limit", "log_every", "threads"), (1, math.inf)),
    **dict.fromkeys(("workers", "probe_every", "save_minutes", "weight_decay"), (0, math.inf)),
}
"""The least and the most that a flag may be."""


def _flag(default: Any, text: str, *, learning: bool = False) -> Any:
    return field(default=default, metadata={"help": text, "learning": learning})


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every method takes. ``None`` leaves the choice to the recipe or to the data.

    From Python ``data`` may be a torch data set or a ``Source`` too; such a run is of one process, and evaluating or
    embedding it needs the data again.
    """

    data: Any = _flag("world", "Folder of images, list file, parquet, Hub or torchvision name, world.", learning=True)
    backbone: str | None = _flag(
        None, "Any timm model, small_cnn or tiny_cnn. Default: that of --init-from, else the paper's.", learning=True
    )
    patch_size: int | None = _flag(None, "Patch of a ViT in pixels. Default: as its name says.", learning=True)
    image_size: int | None = _flag(None, "Pixels a side. Default: the data's own up to 96, else 224.", learning=True)
    channels: int = _flag(3, "Channels of the images.", learning=True)
    pretrained: bool = _flag(False, "Start from the backbone's published weights.", learning=True)
    epochs: int | None = _flag(None, "Passes over the data. Default: the paper's.", learning=True)
    batch_size: int | None = _flag(None, "Samples per update over all devices. Default: the paper's.", learning=True)
    accumulate: int = _flag(1, "Micro-batches per update, to fit a large batch into memory.", learning=True)
    lr: float | None = _flag(None, "Peak learning rate, already scaled by the batch.", learning=True)
    optimiser: Optimiser = _flag(
        "paper",
        "adamw (2e-3) learns faster in trainings too short for the paper's, whose --clip, --end-lr and --scaling go.",
        learning=True,
    )
    weight_decay: float | None = _flag(None, "Peak weight decay.", learning=True)
    limit: int | None = _flag(None, "Use only so many images, a random subset by key.", learning=True)
    seed: int = _flag(0, "Seed of all random numbers.", learning=True)
    init_from: Path | None = _flag(None, "A run whose weights to begin with, and its backbone.", learning=True)
    labels: Path | None = _flag(None, "CSV of path,label for the online probe.", learning=True)
    devices: int = _flag(1, "Processes, one for each device.")
    device: Device = _flag("auto", "Where to train.")
    precision: Precision = _flag("auto", "auto is bf16 where the processor has it, else 32.")
    compile: bool = _flag(False, "Compile the encoder.")
    workers: int | None = _flag(None, "Processes that decode large images. Default: by the machine.")
    threads: int | None = _flag(None, "CPU threads of each process.")
    max_time: str | None = _flag(None, "Save and leave after so long: 90s, 30m, 12h, 2d.")
    probe_every: int | None = _flag(None, "Epochs between two kNN probes, 0 for none. Default: ten in a run.")
    save_minutes: float = _flag(5.0, "Minutes between two checkpoints; one more is saved at the end.")
    log_every: int = _flag(20, "Updates between two lines of metrics.csv.")
    logger: tuple[Logger, ...] | None = _flag(None, "Beside the CSV. Default: tensorboard where it is installed.")
    report: bool = _flag(True, "Write report.html at the end.")
    out: Path | None = _flag(None, "The run's folder. Default: runs/METHOD-DATA-BACKBONE.")
    resume: bool = _flag(False, "Go on with the run in --out, from its last checkpoint.")
    overwrite: bool = _flag(False, "Delete the run in --out first.")

    def check(self) -> None:
        """Refuses values that cannot be meant."""
        if self.backbone is not None and not isinstance(self.backbone, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(_NO_NAME)
        if self.devices > 1 and not isinstance(self.data, str):
            raise UserError("devices above 1 start new processes, which take data by name or path only")
        _check_words(vars(self))
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # nor is it no number at all
                bound = f"at most {most}" if value > most else f"at least {least}"
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {bound}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"--lr is {self.lr}; it must be above 0")
        if self.weight_decay == math.inf:
            raise UserError("--weight-decay is inf; it must be a number")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"--seed is {self.seed}; it must be 0 or more and below 2^63")
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other; give one of them")
        seconds(self.max_time)

    def plain(self) -> dict[str, Any]:
        """The flags as plain values for run.yaml, with paths that hold from any folder."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("resume", "overwrite")}
        if not isinstance(self.data, str):
            kept["data"] = f"{OBJECT}{type(self.data).__name__}"
        for name in ("data", "labels", "init_from"):
            if kept[name] and os.path.exists(kept[name]):
                kept[name] = os.path.abspath(kept[name])
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in kept.items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


LEARNING = frozenset(f.name for f in fields(Flags) if f.metadata["learning"])
"""Flags that change what is learnt: fixed for the life of a run."""


def flags_from(values: dict[str, Any]) -> Flags:
    """Flags from plain values; an unknown name is a ``UserError`` with the nearest one."""
    known = {f.name for f in fields(Flags)}
    for name in values:
        if name not in known:
            raise unknown("flag", str(name), known)
    typed: dict[str, Any] = dict(values)
    for name in ("labels", "init_from", "out"):
        if isinstance(typed.get(name), str | os.PathLike):
            typed[name] = Path(typed[name])
    if isinstance(typed.get("data"), Path):
        typed["data"] = str(typed["data"])
    if isinstance(typed.get("logger"), str | list):
        typed["logger"] = (typed["logger"],) if isinstance(typed["logger"], str) else tuple(typed["logger"])
    if typed.get("backbone") is not None and not isinstance(typed["backbone"], str):
        raise UserError(_NO_NAME)
    for f in fields(Flags):
        if f.name in typed and not _fits(typed[f.name], f):
            raise UserError(f"{f.name} is {typed[f.name]!r}, which is no value of this flag")
    _check_words(typed)
    return Flags(**typed)


def _check_words(values: Mapping[str, Any]) -> None:
    """Refuses words that a flag does not know, with the nearest one that it does."""
    for name, words in (("device", DEVICES), ("precision", PRECISIONS), ("optimiser", OPTIMISERS)):
        if name in values and values[name] not in words:
            raise unknown(name, str(values[name]), words)
    for name in values.get("logger") or ():
        if name not in LOGGERS:
            raise unknown("logger", str(name), LOGGERS)


_KINDS: Mapping[Any, Any] = {int: Integral, float: Real}


def _fits(value: Any, of: Field[Any]) -> bool:
    """Whether a plain value is of the flag's kind: a run.yaml may have been written by anyone."""
    if of.name == "data":  # may be an object of Python's own
        return True
    kinds = get_args(of.type) if type(None) in get_args(of.type) else (of.type,)
    if isinstance(value, bool):
        return bool in kinds
    plain = (_KINDS.get(kind, kind) for kind in kinds if isinstance(kind, type))
    if isinstance(value, tuple(plain)):
        return True
    words = tuple if of.name == "logger" else str  # of which ``_check_words`` says which there are
    return of.name in ("logger", "device", "precision", "optimiser") and isinstance(value, words)


def seconds(text: str | None) -> float | None:
    """A time such as ``90s``, ``30m``, ``12h`` or ``2d`` in seconds.

    >>> seconds("1.5h")
    5400.0
    """
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        value = float(number) * units[unit]
    except ValueError:
        value = -1.0
    if not value > 0:
        raise UserError(f"--max-time is '{text}'; write 90s, 30m, 12h or 2d")
    return value


def arguments(method: str, flags: Flags, hyper: Mapping[str, Any]) -> list[str]:
    """The command line that gives these flags: a method's, or that of a stage after it."""
    standard, card = Flags(), catalogue.entry(method)
    given = {
        f.name: getattr(flags, f.name) for f in fields(Flags) if getattr(flags, f.name) != getattr(standard, f.name)
    }
    given |= {name: value for name, value in hyper.items() if value is not None}
    words = ["pretrain", method]
    if card.takes:
        given["data"] = flags.data  # a stage's default is another run's data
        if given.get(card.takes) is None:
            raise UserError(f"these settings of {method} do not say which run it goes on from: {card.takes} is missing")
        begun = str(given.pop(card.takes))
        words = [method, os.path.join(os.curdir, begun) if begun.startswith("-") else begun]  # a path is no flag
    for name, value in given.items():
        if name in card.fixed:  # it follows from the argument
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            for part in value if isinstance(value, tuple | list) else [value]:
                # a value that looks like a flag must not become one
                words += [f"{flag}={part}"] if str(part).startswith("-") else [flag, str(part)]
    return words


def command(method: str, flags: Flags, hyper: Mapping[str, Any]) -> str:
    """The command to repeat the run."""
    again = replace(flags, resume=False, overwrite=False)
    return shlex.join(["selfsight", *arguments(method, again, hyper)])
