"""What a classifier says of many images, on disk: in parts, so that a labelling that was stopped goes on.

FOLDER/answers.json         whose answers, for which images, and in how many parts
FOLDER/part-00000.npy       rows of a position in the source and the probabilities of all classes

Of ImageNet they are gigabytes, so whoever learns from them maps the parts into memory: processes of one machine share
what they have read, and the system takes it back when it needs the room.

Images are shown in the teacher's evaluation view, and nothing in it is random: noise there costs the student accuracy
(Xie et al., 2020, arXiv 1911.04252, section 4.1).
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import nn

from selfsight import distributed
from selfsight.data.cache import cache_folder, digest
from selfsight.data.protocol import Source
from selfsight.data.splits import Chosen
from selfsight.data.workers import default_workers
from selfsight.encoders.protocol import Encoder
from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.loop import Ending
from selfsight.engine.run import OpenRun
from selfsight.engine.signals import interruption
from selfsight.engine.start import Say
from selfsight.engine.stored import read_plain
from selfsight.errors import UserError
from selfsight.evaluation.features import extract
from selfsight.evaluation.processes import meet, processes
from selfsight.parts.logits import Logits
from selfsight.views.protocol import Views

FORMAT = 2
PART = 16_384
"""Images of a part: what is lost at most where a labelling is stopped."""

_MOST_PARTS = 1_000_000


def write_answers(
    teacher: OpenRun,
    source: Source,
    positions: Int[np.ndarray, " n"],
    folder: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    seconds: float | None = None,
    part: int = PART,
    say: Say = print,
) -> Ending:
    """Answers for the images of ``source`` at ``positions``; parts that are there already are not made again.

    Images that cannot be read get none. Returns "done", or what stopped it: a signal, or ``seconds``. Under torchrun
    the processes share each part, the first one alone writes, and what stops any stops all.
    """
    parts = [positions[start : start + part] for start in range(0, len(positions), part)]
    facts = {
        "format": FORMAT,
        "teacher": str(teacher.path.resolve()),
        "weights": _weights(teacher),
        "images": digest(source.fingerprint, np.ascontiguousarray(positions, dtype=np.int64)),
        "classes": list(teacher.classes),
        "parts": len(parts),
    }
    began = time.monotonic()
    with processes(device) as place, interruption() as interrupted:
        first = distributed.rank() == 0
        missing = _by_the_first(lambda: _begin(folder, facts))
        if not missing:
            return "done"
        if first:
            say(f"{teacher.path} answers for {len(positions):,} images without labels")
        recipe = teacher.recipe()
        classifier = cast(Encoder, Logits(recipe.method).eval())
        plain = cast(Views[Any], recipe.views.plain)  # pyright: ignore[reportAttributeAccessIssue]
        helpers = default_workers(distributed.world_size()) if workers is None else workers
        for k in missing:
            late = seconds is not None and time.monotonic() - began > seconds
            wishes = distributed.total(torch.tensor([interrupted(), late], dtype=torch.int32, device=place)).tolist()
            if any(wishes):
                return "stopped" if wishes[0] else "max-time"
            some = cast(Source, Chosen(source, parts[k], name=source.name))
            found = extract(classifier, some, plain, device=place, workers=helpers, cache_dir=cache_folder())
            if not first:
                continue
            held = io.BytesIO()
            probabilities = found.x.double().softmax(dim=1).float().numpy()
            np.save(held, as_rows(parts[k][found.positions.numpy()], probabilities))
            write_atomically(_path(folder, k), held.getvalue())
        meet(place)  # nobody reads the last part before it is written
    return "done"


def _begin(folder: Path, facts: dict[str, Any]) -> list[int]:
    """Writes whose answers the folder is for; returns the parts that it lacks.

    Parts are these answers only where the facts beside them say so. Others go before the new facts come: whoever is
    killed in between leaves parts that are still not taken for this teacher's.
    """
    about = folder / "answers.json"
    if not about.exists() or read_plain(about, "a teacher's answers") != facts:
        for path in (*folder.glob("part-*.np[yz]"), *folder.glob(".part-*.np[yz].*")):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(about, (json.dumps(facts, indent=2) + "\n").encode())
    return [k for k in range(facts["parts"]) if not _path(folder, k).exists()]


def _by_the_first(make: Callable[[], list[int]]) -> list[int]:
    """What the first process made, on all of them; where it failed, all do, and none waits for it."""
    told: list[Any] = [None, ""]
    failed: Exception | None = None
    if distributed.rank() == 0:
        try:
            told[0] = make()
        except (UserError, OSError) as error:
            failed, told[1] = error, str(error)
    if distributed.world_size() > 1:
        dist.broadcast_object_list(told)
    if failed is not None:
        raise failed
    if told[1]:
        raise UserError(told[1])
    return told[0]


def as_rows(positions: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n k"]) -> np.ndarray:
    """A part as its file has it."""
    kind = [("position", np.int64), ("probabilities", np.float32, probabilities.shape[1:])]
    rows = np.empty(len(positions), dtype=kind)
    rows["position"], rows["probabilities"] = positions, probabilities
    return rows


class Answers:
    """Answers that lie on the disk: ``positions`` in the source, and by row what a teacher said of each."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.positions: Int[np.ndarray, " n"] = np.concatenate([part["position"] for part in parts])
        self._parts: list[np.ndarray] = [part["probabilities"] for part in parts]
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def classes(self) -> int:
        return self._parts[0].shape[1]

    def best(self) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The most likely class of each, and its probability."""
        found = [(part.argmax(axis=1), part.max(axis=1)) for part in self._parts]
        return tuple(map(np.concatenate, zip(*found, strict=True)))  # pyright: ignore[reportReturnType]

    def rows(self, which: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m k"]:
        """The probabilities in these rows alone."""
        out = np.empty((len(which), self.classes), dtype=np.float32)
        holder = np.searchsorted(self._ends, which, side="right")
        for k in np.unique(holder):
            mine, part = holder == k, self._parts[k]
            out[mine] = part[which[mine] - (self._ends[k] - len(part))]
        return out


def read_answers(folder: Path) -> Answers:
    """The answers of all parts; a ``UserError`` where some are missing."""
    about = folder / "answers.json"
    if not about.exists():
        raise UserError(f"{folder} has no teacher's answers")
    known = read_plain(about, "a teacher's answers")
    count = known.get("parts") if isinstance(known, dict) else None
    if not isinstance(count, int) or not 0 <= count <= _MOST_PARTS:
        raise UserError(f"{about} is damaged: it does not say how many parts there are; delete the folder")
    paths = [_path(folder, k) for k in range(count)]
    if not count or not all(path.exists() for path in paths):
        raise UserError(f"{folder} has {sum(path.exists() for path in paths)} of {count} parts of a teacher's answers")
    return Answers([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npy"


def _weights(teacher: OpenRun) -> str:
    """Tells one state of the teacher from another: it may have been trained anew in the same folder."""
    state: nn.Module = teacher.recipe().method
    return digest(*(f"{key} {x.double().sum().item()!r}" for key, x in state.state_dict().items()))
