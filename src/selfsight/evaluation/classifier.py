"""What a fine-tuned or distilled run is worth: its own classifier on test images, beside what else the labels give.

A fine-tuned classifier stands beside the same network trained from scratch on the same labelled images, for as many
epochs, with the settings of ``selfsight.evaluation.finetune``: fine-tuning's own rate is too small for random weights
and would make a straw man of them. A student stands beside its teacher, and beside its own architecture from scratch.
"""

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from selfsight import distributed
from selfsight.batches import Images
from selfsight.data.cache import cache_folder
from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.workers import default_workers
from selfsight.encoders.protocol import Encoder
from selfsight.engine.run import OpenRun, open_run
from selfsight.errors import UserError
from selfsight.evaluation.baselines import fresh
from selfsight.evaluation.evaluate import save, show
from selfsight.evaluation.features import extract
from selfsight.evaluation.finetune import finetune, labelled_fraction
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.processes import processes
from selfsight.evaluation.score import Score, score
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import LabelledData, chosen, crop_of, labelled
from selfsight.flags import Flags
from selfsight.parts.head_layers import WithHead
from selfsight.parts.logits import Logits
from selfsight.recipes.distill import usual_temperature
from selfsight.recipes.noisy_student import NONE
from selfsight.views.protocol import Views

NAME = "classifier"


def evaluate_classifier(
    run: OpenRun, *, data: Any = None, device: str = "auto", workers: int | None = None, quiet: bool = False
) -> dict[str, dict[str, Any]]:
    """Scores the classifier of ``run``, saves ``evaluation/classifier.json`` in it and prints a table.

    The images are those that the fine-tuning had its labels from, or ``data`` in their place where only the Python
    program has them; the test split is theirs.
    """
    start = time.perf_counter()
    tuned = tuned_run(run)
    with processes(device) as where:
        helpers = default_workers(distributed.world_size()) if workers is None else workers
        place = Place(device=where, workers=helpers, cache_dir=cache_folder())
        labels, kept = tuned_labels(tuned, data)
        known = labels.data
        method: Any = run.recipe().method
        plain = run.assembly.recipe.views.plain
        hyper = run.settings["hyper"]
        found = _score(method, known.test, plain, place)
        baselines: dict[str, Any] = {}
        if hyper.get("teacher", NONE) != NONE:
            teacher = open_run(hyper["teacher"])
            other = _score(teacher.recipe().method, known.test, plain, place)
            baselines["teacher"] = {**other.row(), "settings": {"run": str(teacher.path)}}
        baselines["scratch"] = _saved_scratch(run, tuned) or _scratch(
            method=method, known=known, kept=kept, plain=plain, tuned=tuned, place=place
        )
        result = {
            "protocol": NAME,
            "method": run.method,
            "encoder": run.settings["resolved"]["backbone"],
            "settings": {
                "labelled": len(kept),
                **_told(run),
                "epochs": run.settings["resolved"]["epochs"],
            },
            "scores": found.row(),
            "baselines": baselines,
            "data": known.facts(),
            "seed": run.flags.seed,
            "selfsight": version("selfsight"),
            "seconds": round(time.perf_counter() - start, 2),
        }
        if distributed.rank() == 0:
            save({NAME: result}, run.path / "evaluation")
            if not quiet:
                show({NAME: result})
    return {NAME: result}


def _told(run: OpenRun) -> dict[str, Any]:
    """The settings of its own that a stage's score depends on."""
    hyper = run.settings["hyper"]
    if run.method == "noisy_student":
        return {name: value for name, value in hyper.items() if name not in ("teacher", "answers")}
    if run.method != "distill":
        return {"head_layers": hyper.get("head_layers", 1)}
    both = (who.settings["resolved"]["backbone"] for who in (run, open_run(hyper["teacher"])))
    weight = hyper.get("label_weight", 0.0)
    temperature = hyper.get("temperature") or usual_temperature(*both, label_weight=weight)
    return {"temperature": temperature, "label_weight": weight}


def tuned_run(run: OpenRun) -> OpenRun:
    """The run with labels that ``run`` is, fine-tuned or a noisy student; or its teacher, or its teacher's teacher."""
    seen: set[Path] = set()
    while run.method == "distill":
        seen.add(run.path.resolve())
        teacher = run.settings.get("hyper", {}).get("teacher")
        if not isinstance(teacher, str):
            raise UserError(f"{run.path} is damaged: it does not say who its teacher was; distill it anew")
        run = open_run(teacher)
        if run.path.resolve() in seen:
            raise UserError(f"{run.path} is its own teacher, so no run with labels is behind it; distill it anew")
    if run.method not in ("finetune", "noisy_student"):
        raise UserError(f"{run.path} is a run of {run.method}, no classifier: selfsight finetune {run.path}")
    return run


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The images that a fine-tuning chose its labels from, and those that its classifier is tested on."""

    whole: Source
    """Train with all its images, labelled or not: a fraction's images are numbered in it."""
    data: LabelledData

    def kept(self, fraction: float, seed: int) -> Source:
        """The images whose labels are used."""
        return chosen(self.whole, labelled_fraction(cast(np.ndarray, self.whole.labels), fraction, seed=seed))


def open_labels(data: Any, flags: Flags, image_size: int | None) -> Labels:
    """Train, as a run with these flags sees it, and all of test; refused in one line where either has no labels."""
    how: dict[str, Any] = {"image_size": image_size, "labels": flags.labels, "channels": flags.channels}
    train = open_data(data, split="train", limit=flags.limit, seed=flags.seed, **how)
    return Labels(whole=train, data=labelled((train, open_data(data, split="test", **how)), "a classifier", instead=""))


def tuned_labels(tuned: OpenRun, data: Any = None) -> tuple[Labels, Source]:
    """A fine-tuned run's labels, and the images that it learnt from."""
    found = open_labels(tuned.data() if data is None else data, tuned.flags, tuned.image_size)
    hyper = tuned.settings["hyper"]
    return found, found.kept(hyper.get("fraction") or 1.0, hyper.get("label_seed") or 0)


def _score(classifier: nn.Module, test: Source, plain: Views[Images], place: Place) -> Score:
    held = extract(cast(Encoder, Logits(classifier)), test, plain, **vars(place))
    return score(held.x, held.labels)


def _saved_scratch(run: OpenRun, tuned: OpenRun) -> dict[str, Any] | None:
    """The baseline of the fine-tuning, for a student of the same backbone, which would have the same one but for the
    layers of the head."""
    if run.path == tuned.path and run.settings["hyper"].get("teacher", NONE) != NONE:
        tuned = open_run(run.settings["hyper"]["teacher"])  # a noisy student's teacher learnt from the same labels
    path = tuned.path / "evaluation" / f"{NAME}.json"
    same = run.settings["resolved"]["backbone"] == tuned.settings["resolved"]["backbone"]
    if run.path == tuned.path or not same or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))["baselines"]["scratch"]
    return {**found, "settings": {**found["settings"], "measured_for": str(tuned.path)}}


def _scratch(
    *, method: Any, known: LabelledData, kept: Source, plain: Views[Images], tuned: OpenRun, place: Place
) -> dict[str, Any]:
    """The same architecture at random, trained on the labelled images alone."""
    encoder: Any = method.encoder
    if len(getattr(method, "projector", ())):
        encoder = WithHead(encoder, method.projector)
    resolved = tuned.settings["resolved"]
    batch = tuned.flags.batch_size or resolved["batch_size"]  # of labelled images
    lesson = Lesson(
        train=kept,
        test=known.test,
        crop=crop_of(plain),
        plain=plain,
        classes=known.classes,
        epochs=resolved["epochs"],
        batch_size=batch,
        seed=tuned.flags.seed,
        place=place,
    )
    found, tuning = finetune(fresh(encoder, seed=tuned.flags.seed), lesson, scratch=True)
    settings = {name: getattr(tuning, name) for name in ("labelled", "optimiser", "lr", "epochs", "batch_size")}
    return {**found.row(), "settings": settings}
