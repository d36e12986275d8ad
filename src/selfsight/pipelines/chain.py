"""Several runs in a row, each in a folder of its own: what is done stays done, and what was stopped goes on.

OUT/pipeline.yaml       the pipeline's settings: a second call needs no more than --out
OUT/1-pretrain/         a run, as any other
OUT/2-finetune/         ...
OUT/summary.json        the score of each stage beside its baselines
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.launch import is_launched
from selfsight.engine.loop import Ending
from selfsight.engine.start import Say
from selfsight.engine.stored import fits, read_plain
from selfsight.errors import TrainingError, UserError, unknown
from selfsight.evaluation.evaluate import NAMES
from selfsight.evaluation.table import percent, show_table

FORMAT = 1
SETTINGS, SUMMARY = "pipeline.yaml", "summary.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a pipeline.

    ``run`` is called with the run's folder and the flags that say how to begin (``resume``, ``overwrite``,
    ``max_time``) and says how it ended; ``measure`` scores a finished folder and saves ``protocol``'s JSON in it.
    """

    name: str
    what: str
    protocol: str
    run: Callable[[Path, dict[str, Any]], Ending]
    measure: Callable[[Path], object]


def settle(
    folder: Path,
    name: str,
    asked: Mapping[str, Any],
    given: Collection[str],
    *,
    kinds: Mapping[str, Any],
    defaults: Mapping[str, Any],
    later: Mapping[str, str],
    overwrite: bool,
) -> dict[str, Any]:
    """The settings to go on with: those that the pipeline was begun with, else the call's, which are then written.

    A setting that the call gives with another value is refused, as by a run's ``--resume``, but for those of ``later``
    stages: it names the first that each is for, and until that has learnt something they may change.

    The file may be another version's, or anybody's: each setting is of the annotation in ``kinds``, and one that is
    not there has its default.
    """
    if is_launched():
        raise UserError("a pipeline starts its own processes; call it once, with --devices")
    path = folder / SETTINGS
    if path.exists() and not overwrite:
        found = read_plain(path, "a pipeline's settings")
        if not isinstance(found, dict) or found.get("pipeline") != name or found.get("format") not in range(FORMAT + 1):
            raise UserError(f"{path} is not what this version's {name} has written; choose another --out")
        before = found.get("settings")
        if not isinstance(before, dict):
            raise UserError(f"{path} is damaged; write it anew with --overwrite, or choose another --out")
        before = _known(before, path, kinds, defaults)
        other = [k for k in sorted(given) if asked[k] != before.get(k)]
        fixed = [k for k in other if k not in later or _has_learnt(folder / later[k])]
        if fixed:
            words = ", ".join(f"--{k.replace('_', '-')} {before.get(k)} -> {asked[k]}" for k in fixed)
            raise UserError(
                f"{folder} was begun with other settings ({words}); go on without them, or start anew with "
                "--overwrite or another --out"
            )
        return before | {k: asked[k] for k in other}
    others = folder.exists() and (not folder.is_dir() or {*folder.iterdir()} - {*_leftovers(folder)})
    if others and not path.exists():
        raise UserError(f"{folder} exists, is not empty and holds no pipeline; choose another --out")
    return dict(asked)


def _known(
    found: Mapping[str, Any], path: Path, kinds: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings in a file, each of its kind, and those that it has not."""
    for name, value in found.items():
        if name not in kinds:
            raise UserError(f"{path}: {unknown('setting', str(name), kinds)}")
        if value is not None and not fits(value, kinds[name], plain=True):
            raise UserError(f"{path} is damaged: {name} is {repr(value)[:40]}; write it anew with --overwrite")
    stored = {name: value for name, value in found.items() if value is not None}
    return {name: defaults.get(name) for name in kinds} | stored


def _leftovers(folder: Path) -> list[Path]:
    """What killed processes had begun to write beside the stages."""
    return [path for path in folder.glob(".*") if re.fullmatch(r"\.(pipeline\.yaml|summary\.json)\.\d+", path.name)]


def _has_learnt(place: Path) -> bool:
    return (place / "checkpoints" / "last.pt").exists() or (place / "encoder.safetensors").exists()


def begin(folder: Path, name: str, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Makes the folder and writes what it was begun with; ``overwrite`` deletes the stages of another pipeline."""
    if overwrite and (folder / SETTINGS).exists():
        for part in [*folder.glob("[0-9]-*"), folder / SUMMARY]:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"format": FORMAT, "pipeline": name, "settings": dict(settings)}, sort_keys=False)
    write_atomically(folder / SETTINGS, text.encode())
    for part in _leftovers(folder):
        part.unlink(missing_ok=True)


def carry_out(folder: Path, stages: Sequence[Stage], *, seconds: float | None, again: str, say: Say) -> Ending:
    """Runs the stages that are not done, measures those that are not measured, and writes the summary.

    ``again`` says which call goes on where this one is stopped.
    """
    until = None if seconds is None else time.monotonic() + seconds
    for stage in stages:
        place = folder / stage.name
        if not (place / "encoder.safetensors").exists():
            say(f"{stage.name}: {stage.what}")
            how = how_to_begin(place)
            if until is not None:
                how["max_time"] = f"{max(until - time.monotonic(), 0.01):.2f}s"
            ended = stage.run(place, how)
            if ended != "done":
                say(f"stopped in {stage.name}; {again} goes on from there")
                return ended
        if not (place / "evaluation" / f"{stage.protocol}.json").exists():
            stage.measure(place)
        write_summary(folder, stages)
    return "done"


def how_to_begin(place: Path) -> dict[str, Any]:
    """The flags of a run that may have been begun before: it goes on from its last checkpoint, if it has one."""
    if (place / "checkpoints" / "last.pt").exists():
        return {"resume": True}
    return {"overwrite": True} if (place / "run.yaml").exists() else {}


def write_summary(folder: Path, stages: Sequence[Stage]) -> dict[str, Any]:
    """``summary.json``: for each measured stage its score and its baselines', as its own JSON has them."""
    rows: dict[str, Any] = {}
    for stage in stages:
        path = folder / stage.name / "evaluation" / f"{stage.protocol}.json"
        if path.exists():
            found = read_plain(path, "an evaluation, delete it to measure again")
            kept = ("protocol", "encoder", "settings", "scores", "baselines", "data")
            if not isinstance(found, dict) or not found.keys() >= {*kept}:
                raise UserError(f"{path} is damaged; delete it, and the same command measures again")
            rows[stage.name] = {"what": stage.what, **{key: found[key] for key in kept}}
    summary = {"format": FORMAT, "stages": rows}
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / SUMMARY, text.encode(errors="backslashreplace"))
    return summary


def show_summary(folder: Path, title: str) -> None:
    """The summary as a table: a row for each stage, with what it stands beside."""
    stages = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["stages"]
    rows: list[list[str]] = []
    for name, row in stages.items():
        beside = ", ".join(f"{NAMES[who]} {percent(other['top1'])}" for who, other in row["baselines"].items())
        rows.append([name, row["what"], row["encoder"], percent(row["scores"]["top1"]), beside])
    show_table(title, ["stage", "what", "encoder", "top-1", "beside"], rows)


def plain_setting(name: str, value: Any) -> Any:
    """A setting as pipeline.yaml has it, with paths that hold from any folder."""
    if value is not None and name in ("data", "labels") and Path(value).exists():
        return str(Path(value).resolve())
    return str(value) if isinstance(value, Path) else value


@contextmanager
def named_after(stage: str) -> Iterator[None]:
    """What is refused or fails names the pipeline's own flags: ``--finetune-lr`` for a stage's ``--lr``."""
    try:
        yield
    except (UserError, TrainingError) as error:
        text = re.sub(r"--accumulate \d+ [^,;]*, ", "", str(error))  # which pipelines do not have
        raise type(error)(re.sub(r"--(epochs|batch-size|lr)\b", rf"--{stage}-\1", text)) from error
