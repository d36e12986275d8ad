"""What a classifier says of many images, on disk: in parts, so that a labelling that was stopped goes on.

FOLDER/answers.json         whose answers, for which images, and in how many parts
FOLDER/part-00000.npz       positions in the source, and for each the probabilities of all classes

Images are shown in the teacher's evaluation view, and nothing in it is random: noise there costs the student accuracy
(Xie et al., 2020, arXiv 1911.04252, section 4.1).
"""

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from torch import nn

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
from selfsight.evaluation.processes import processes
from selfsight.parts.logits import Logits
from selfsight.views.protocol import Views

FORMAT = 1
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

    Images that cannot be read get none. Returns "done", or what stopped it: a signal, or ``seconds``.
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
    about = folder / "answers.json"
    if about.exists() and read_plain(about, "a teacher's answers") != facts:
        shutil.rmtree(folder)  # another teacher's, or of other images
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(about, (json.dumps(facts, indent=2) + "\n").encode())
    missing = [k for k in range(len(parts)) if not _path(folder, k).exists()]
    if not missing:
        return "done"
    say(f"{teacher.path} answers for {len(positions):,} images without labels")
    recipe, began = teacher.recipe(), time.monotonic()
    classifier = cast(Encoder, Logits(recipe.method).eval())
    plain = cast(Views[Any], recipe.views.plain)  # pyright: ignore[reportAttributeAccessIssue]
    with processes(device) as place, interruption() as interrupted:
        helpers = default_workers(1) if workers is None else workers
        for k in missing:
            if interrupted():
                return "stopped"
            if seconds is not None and time.monotonic() - began > seconds:
                return "max-time"
            some = cast(Source, Chosen(source, parts[k], name=source.name))
            found = extract(classifier, some, plain, device=place, workers=helpers, cache_dir=cache_folder())
            held = io.BytesIO()
            probabilities = found.x.double().softmax(dim=1).float().numpy()
            np.savez(held, positions=parts[k][found.positions.numpy()], probabilities=probabilities)
            write_atomically(_path(folder, k), held.getvalue())
    return "done"


def read_answers(folder: Path) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """Positions and probabilities of all parts; a ``UserError`` where some are missing."""
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
    parts = [np.load(path, allow_pickle=False) for path in paths]
    return tuple(np.concatenate([part[name] for part in parts]) for name in ("positions", "probabilities"))  # pyright: ignore[reportReturnType]


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npz"


def _weights(teacher: OpenRun) -> str:
    """Tells one state of the teacher from another: it may have been trained anew in the same folder."""
    state: nn.Module = teacher.recipe().method
    return digest(*(f"{key} {x.double().sum().item()!r}" for key, x in state.state_dict().items()))
