r"""The recipe of SimCLR v2's distillation (arXiv 2006.10029). The method: ``selfsight.methods.distillation``.

As the pretraining: LARS with 0.1 √batch and a warm-up for a twentieth of the training, decay 1e-4, batch 4096, for
400 epochs; crop and flip alone (the notebook's toy run: rate 2 at a batch of 64, no warm-up). Small images: the rate,
the warm-up and the batch of the small pretraining, 1.0 x batch / 256, ten epochs and 512.

τ is the paper's, which found little difference: 0.1 for a student of the teacher's architecture, 1 (the notebook's too)
for another. Beside labels it is 1 for both, since the notebook's factor τ² would leave little of the answers. The
student begins at random unless ``--init-from`` says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from selfsight.batches import Images
from selfsight.engine.optimisers import LARS
from selfsight.evaluation.finetune import labelled_fraction
from selfsight.evaluation.subject import crop_of
from selfsight.loading import load_classifier
from selfsight.methods.distillation import Distillation
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views.pipelines import PlainView, plain_view
from selfsight.views.view import Normalise

STAGES = {
    "distill": {
        "family": "supervised",
        "title": "Distillation",
        "year": 2020,
        "arxiv": "2006.10029",
        "fact": "Trains a student on a fine-tuned run's answers for images without labels.",
        "takes": "teacher",
        "fixed": (
            "pretext",
            "classes",
            "fraction",
            "label_seed",
            "patch_size",
            "image_size",
            "channels",
            "pretrained",
            "probe_every",
        ),
    }
}


def distill(
    at: Setting,
    *,
    teacher: str,
    temperature: float | None = None,
    label_weight: float = 0.0,
    classes: Sequence[str],
    fraction: float = 1.0,
    label_seed: int = 0,
    pretext: Mapping[str, Any],
) -> Recipe[Images]:
    """Distillation of a fine-tuned run into a student.

    Parameters
    ----------
    at
        What the run knows.
    teacher
        The fine-tuned run.
    temperature
        Softens the answers of both, τ. Default: 0.1 for a student of the teacher's architecture that learns without
        labels, else 1.
    label_weight
        Weight of the teacher's own labels beside its answers, 1 - α: 0 is without labels, below 1.
    classes
        Those that the teacher tells apart.
    fraction
        The teacher's share of the labels.
    label_seed
        The teacher's choice of them.
    pretext
        The teacher's pretraining; its view of images is the student's.
    """
    positive(temperature=temperature)
    if not 0 <= label_weight < 1:
        raise ValueError(f"--label-weight is {label_weight}; it lies from 0, without labels, to below 1")
    labels = None
    if label_weight and at.training:
        if at.labels is None:
            raise ValueError("--label-weight needs images with labels; leave it out to distill without")
        labels = torch.full((at.samples,), -1)
        mine = labelled_fraction(at.labels, fraction, seed=label_seed)
        labels[torch.from_numpy(mine)] = torch.from_numpy(np.asarray(at.labels)[mine].astype(np.int64))
    knows = load_classifier(teacher) if at.training else None
    names = (getattr(encoder, "name", None) for encoder in (at.encoder, getattr(knows, "encoder", None)))
    method = Distillation(
        at.encoder,
        knows,
        classes=len(classes),
        temperature=temperature or usual_temperature(*names, label_weight=label_weight),
        label_weight=label_weight,
        labels=labels,
    )
    set_scope_(method.requires_grad_(True), "all")
    batch, epochs = at.batch_size or (512 if at.small else 4096), at.epochs or 400
    peak = batch / 256 if at.small else 0.1 * batch**0.5
    main = OptimiserSpec(
        build=partial(LARS, momentum=0.9, eta=1e-3, variant="simclr"),
        lr=warmup_cosine(peak, warmup_epochs=10 if at.small else 0.05 * epochs),
        weight_decay=constant(1e-4),
        groups=skip_vectors,
    )
    return Recipe(
        method=method,
        views=crop_of(_plain(pretext["view"])),  # pyright: ignore[reportArgumentType]
        optimisers={"main": main},
        epochs=epochs,
        batch_size=batch,
    )


def usual_temperature(student: str | None, teacher: str | None, *, label_weight: float) -> float:
    """τ by the names of the two architectures."""
    return 0.1 if student == teacher and not label_weight else 1.0


def _plain(facts: Mapping[str, Any]) -> PlainView:
    """The pretraining's evaluation view, by its facts alone: its recipe may not take the student's encoder."""
    normalise = facts["normalise"] and Normalise(*map(tuple, facts["normalise"]))
    plain = plain_view(facts["size"], normalise, interpolation=facts["interpolation"])
    shown: Any = facts.get("greyscale", "luma")
    return replace(plain, grey=facts["grey"], greyscale=shown)
