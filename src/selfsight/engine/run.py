"""A run on disk: its folder, its settings, and the way back from a folder to a recipe, an encoder and the data."""

import platform
import shutil
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from selfsight.batches import Images
from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.splits import Chosen
from selfsight.engine import checkpoint
from selfsight.engine.stored import check_hyper, check_settings, read_plain, stored_flags
from selfsight.errors import UserError
from selfsight.flags import LEARNING, OBJECT, Flags, flags_from
from selfsight.recipes.assembly import Assembly, Shape, assemble
from selfsight.recipes.recipe import Recipe
from selfsight.views.pipelines import PlainView, plain_view
from selfsight.views.protocol import Views
from selfsight.views.view import Normalise

FORMAT = 1
PARTS = (
    "run.yaml checkpoints encoder.safetensors encoder.json metrics.csv timings.csv alarms.csv skipped.csv "
    "evaluation export report.html"
).split()
"""What a run puts into its folder: ``--overwrite`` deletes these and nothing else."""


_MOST = 1 << 24
_SHAPES: Mapping[str, type] = {
    "format": int,
    "method": str,
    **dict.fromkeys(("flags", "hyper", "resolved", "data", "machine"), dict),
}


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes run.yaml."""
    text = yaml.safe_dump({"format": FORMAT, **settings}, sort_keys=False, allow_unicode=True)
    checkpoint.write_atomically(folder / "run.yaml", text.encode())


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a run.yaml, or that of a run's folder."""
    path = path / "run.yaml" if path.is_dir() else path
    try:
        settings = read_plain(path, "a run's settings")
    except FileNotFoundError:
        inside = sorted(str(found.parent) for found in path.parent.glob("*/run.yaml"))
        hint = f"; it holds {', '.join(inside[:4])}{'...' if len(inside) > 4 else ''}" if inside else ""
        raise UserError(f"there is no run at {path.parent}: it has no run.yaml{hint}") from None
    if not isinstance(settings, dict) or not {"format", "method", "flags"} <= settings.keys():
        raise UserError(f"{path} is not a run's settings: it must name format, method and flags")
    if not isinstance(settings["format"], int):
        raise UserError(f"{path} is not a run's settings: its format is no number")
    if settings["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer selfsight (format {settings['format']}); upgrade selfsight")
    check_settings(settings, path)
    return settings if settings.get("hyper", {}) is not None else {**settings, "hyper": {}}


def clear(folder: Path) -> None:
    """Deletes what killed processes had begun to write."""
    for path in checkpoint.leftovers(folder):
        path.unlink(missing_ok=True)


def prepare_folder(folder: Path, flags: Flags, *, resumable: bool = True) -> None:
    """Makes the folder of a new run; one that holds another run is kept unless ``--overwrite`` is given."""
    if (folder / "run.yaml").exists():
        if not flags.overwrite:
            go_on = "go on with it by --resume, " if resumable else ""
            raise UserError(f"{folder} holds another run; {go_on}delete it by --overwrite, or choose another --out")
        # run.yaml stays until the new one takes its place: whatever ends this call, another --overwrite goes on from it
        for target in [*(folder / part for part in PARTS if part != "run.yaml"), *folder.glob("events.out.tfevents*")]:
            is_folder = target.is_dir() and not target.is_symlink()
            shutil.rmtree(target) if is_folder else target.unlink(missing_ok=True)
    elif folder.exists() and (not folder.is_dir() or {*folder.iterdir()} - {*checkpoint.leftovers(folder)}):
        raise UserError(f"{folder} exists, is not empty and holds no run; choose another --out")
    clear(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None


def resumed_flags(
    method: str, flags: Flags, hyper: Mapping[str, Any], folder: Path, given: Collection[str]
) -> tuple[Flags, dict[str, Any]]:
    """The flags to go on with: the run's own, with this call's execution flags.

    A learning flag that this call gives (its name is in ``given``) with another value is refused; one that it leaves
    alone is the run's.
    """
    settings = read_settings(folder)
    if settings["method"] != method:
        raise UserError(f"{folder} is a run of {settings['method']}, not of {method}; choose another --out")
    before, now = settings["flags"], flags.plain()
    check_settings(settings, folder / "run.yaml", whole=True)
    stored_flags(before, folder / "run.yaml")
    check_hyper(method, settings.get("hyper") or {}, folder / "run.yaml")
    differing = [
        f"--{name.replace('_', '-')} {before.get(name)} -> {now[name]}"
        for name in sorted(LEARNING)
        if name in given and now[name] != before.get(name)
    ]
    own = settings.get("hyper", {})
    differing += [f"--{k.replace('_', '-')} {own.get(k)} -> {v}" for k, v in hyper.items() if own.get(k) != v]
    if differing:
        raise UserError(
            f"{folder} was begun with other settings ({', '.join(differing)}); "
            "resume without them, or start anew with --init-from"
        )
    execution = {f.name: getattr(flags, f.name) for f in fields(Flags) if f.name not in LEARNING}
    learning = {name: before[name] for name in LEARNING if name in before}
    if str(learning.get("data", "")).startswith(OBJECT):
        learning["data"] = flags.data  # given again; its fingerprint is compared
    return flags_from({**learning, **execution}), dict(own)


def shape_in(settings: Mapping[str, Any]) -> Shape | None:
    """What the encoder of a run that began with another one's was built of, which its flags alone do not tell."""
    resolved = settings.get("resolved") or {}
    if not settings["flags"].get("init_from") or not resolved.get("backbone"):
        return None
    if ":" in resolved["backbone"] and resolved["backbone"] != settings["flags"].get("backbone"):
        raise UserError(f"run.yaml names the encoder {resolved['backbone']}, which is none of selfsight's or timm's")
    return Shape(resolved["backbone"], resolved.get("backbone_options") or {})


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("selfsight", "torch", "torchvision", "timm", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def view_facts(plain: PlainView) -> dict[str, Any]:
    """The evaluation view of an imported encoder, as run.yaml has it."""
    scale = plain.normalise and [list(numbers) for numbers in plain.normalise]
    return {"size": plain.size, "resize": plain.resize, "interpolation": plain.interpolation, "normalise": scale}


class OpenRun:
    """A run's folder, opened to be evaluated, embedded, exported or reported.

    ``whole``: its recipe comes with the other runs that its training needs, a tokenizer or a teacher, so that its task
    can be set; a ``UserError`` where these are gone.
    """

    def __init__(self, path: Path | str, *, whole: bool = False) -> None:
        self.path, self.whole = Path(path), whole
        if not self.path.exists():
            raise UserError(f"there is no run at {self.path}")
        self.settings = read_settings(self.path)
        check_settings(self.settings, self.path / "run.yaml", whole=True)
        self.flags = stored_flags(self.settings["flags"], self.path / "run.yaml")
        self.flags.check()

    @property
    def method(self) -> str:
        return self.settings["method"]

    @property
    def imported(self) -> dict[str, Any] | None:
        """Where the weights come from, if they were published by others: no recipe, data or training goes with them."""
        return self.settings.get("imported")

    @cached_property
    def plain(self) -> Views[Images]:
        """The evaluation view."""
        if self.imported is None:
            return self.assembly.recipe.views.plain
        try:
            facts = self.imported["view"]
            scale = facts["normalise"] and Normalise(*map(tuple, facts["normalise"]))
            return plain_view(facts["size"], scale, resize=facts["resize"], interpolation=facts["interpolation"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self.path} is damaged: its evaluation view cannot be read; import it again") from None

    @property
    def finished(self) -> bool:
        """Whether the training came to its end: an interrupted one has checkpoints alone."""
        return (self.path / "encoder.safetensors").exists()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that a fine-tuned or distilled run tells apart; none for a self-supervised one."""
        return tuple(self.settings.get("hyper", {}).get("classes") or self.settings["data"].get("classes", ()))

    @property
    def image_size(self) -> int:
        return self.settings["resolved"]["image_size"]

    @cached_property
    def assembly(self) -> Assembly:
        """Encoder and recipe as the run was begun, before any training."""
        return self._assembled(self.settings["data"]["samples"])

    def _assembled(self, samples: int) -> Assembly:
        if self.imported is not None:
            raise UserError(f"{self.path} was imported: it has an encoder, but no recipe, head or training")
        data = self.settings["data"]
        native = tuple(data["native"]) if data.get("native") else None
        check_hyper(self.method, self.settings.get("hyper") or {}, self.path / "run.yaml")
        flags = replace(self.flags, pretrained=False)  # the run's own weights come over them
        how: dict[str, Any] = {"samples": samples, "native": native, "classes": len(self.classes)}
        how |= {"begun": self.flags.pretrained, "shape": shape_in(self.settings), "training": self.whole}
        return assemble(self.method, flags, self.settings.get("hyper", {}), **how)

    def recipe(self, which: Literal["last", "best"] = "last") -> Recipe:
        """The recipe with the run's trained weights."""
        if self.imported is not None and which == "best":
            raise UserError(f"{self.path} was imported: it has one set of weights; use --which last")
        if which == "best" and not (self.path / "checkpoints" / "best.pt").exists():
            raise UserError(f"{self.path} has no best checkpoint: it had no labels for the probe; use --which last")
        path = self.path / "checkpoints" / f"{which}.pt"
        checkpoint.fill_(self.assembly.recipe.method, checkpoint.load(path), path)
        return self.assembly.recipe

    def encoder(self, which: Literal["last", "best"] = "last") -> Any:
        """The trained encoder: encoder.safetensors, or a checkpoint's where the run has not ended or for ``best``."""
        from selfsight.encoders.store import load_encoder  # noqa: PLC0415 - imports timm

        if which == "last" and self.finished:
            return load_encoder(self.path).eval()
        return self.recipe(which).method.encoder.eval()  # pyright: ignore[reportAttributeAccessIssue]

    def data(self) -> str:
        """What the run's images were opened from; a ``UserError`` where only the Python program that began it knows."""
        if self.imported is not None:
            raise UserError(f"{self.path} was imported and has no images of its own; give --data")
        if str(self.flags.data).startswith(OBJECT):
            kind = str(self.flags.data).removeprefix(OBJECT)
            raise UserError(f"{self.path} was trained on a Python object ({kind}), which it cannot open: give data=")
        return self.flags.data

    def source(self, split: Literal["train", "test", "all"] = "train") -> Source:
        """The run's data."""
        return open_data(
            self.data(),
            split=split,
            image_size=self.image_size,
            limit=self.flags.limit if split == "train" else None,
            labels=self.flags.labels,
            seed=self.flags.seed,
            channels=self.flags.channels,
        )

    def trained_on(self) -> Source:
        """The images that the run was trained on: some of the data's, where its recipe chose."""
        source = self.source("train")
        fewer = len(source) > self.settings["data"]["samples"]
        images = self._assembled(len(source)).recipe.images if fewer else None
        return source if images is None else Chosen(source, images, name=source.name)


def open_run(path: Path | str, *, whole: bool = False) -> OpenRun:
    """Opens a run's folder, ``whole`` with what its training needs; a ``UserError`` where there is none."""
    return OpenRun(path, whole=whole)
