r"""The recipe of Noisy Student (Xie et al., 2020, arXiv 1911.04252). The method: ``selfsight.methods.noisy_student``.

**Large images** (section 3.1; google-research/noisystudent aac52bf, ``main.py`` and ``local_scripts/imagenet``):
RMSProp with decay 0.9, momentum 0.9 and ε 1e-3; 0.128 for a batch of 2048 labelled images, 5 epochs of warm-up, × 0.97
every 2.4 epochs; decay 1e-5 of all but batch norms; 350 epochs of the labelled images, twice that for B0 to B4. Three
unlabelled images to a labelled one (one for B0), confidence 0.3, 130,000 a class, soft answers, smoothing 0.1,
stochastic depth up to 0.2. RandAugment of 2 operations at magnitude 27; 6 to 24 for B2 to B6, none for B0 and B1.
Dropout by the size of the network, 0.2 to 0.5, and 0.5 for others.

**Small images** (up to 96 px): its example for SVHN (``local_scripts/svhn/run.sh``): EfficientNet-B0, batch 128 with 5
unlabelled images each, decay 1e-4, 202 epochs (109,474 updates), a rate that falls to an 88th, magnitude 5 and a
hole of half the side; a class gets its even share of the unlabelled images.

**Differences**: batch norm's momentum and ε are timm's. SVHN's example does not flip; here images do, as its code for
any other data. It pads by reflection after RandAugment, here with zeros before it. The code keeps images above a
threshold out of bins and rounds copies by lot, which gives each class its number on average; here it is exact, as the
paper says it. On large images too a class gets at most its even share, where 130,000 would be copies alone. Not built:
the paper's last fine-tuning at a higher resolution.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim.rmsprop_tf import RMSpropTF
from torch import nn

from selfsight.batches import Images
from selfsight.data.order import SHUFFLED, Mixed
from selfsight.errors import UserError
from selfsight.evaluation.answers import read_answers
from selfsight.evaluation.finetune import labelled_fraction
from selfsight.keyed import permutation
from selfsight.methods.noisy_student import NoisyStudent
from selfsight.parts.batchnorm import ScopedBatchNorm, set_scope_
from selfsight.parts.pseudo_labels import balanced
from selfsight.parts.stochastic_depth import stochastic_depth_
from selfsight.recipes.recipe import Group, OptimiserSpec, Recipe, Setting, positive
from selfsight.schedules import constant, exponential
from selfsight.views.randaugment import noisy_view
from selfsight.views.view import View

STAGES = {
    "noisy_student": {
        "family": "supervised",
        "title": "Noisy Student",
        "year": 2020,
        "arxiv": "1911.04252",
        "fact": "Trains a student under noise on labels and on a classifier's answers for other images.",
        "encoder": "efficientnet_b0",
        "small_encoder": "efficientnet_b0",
        "takes": "teacher",
        "fixed": ("answers", "probe_every"),
    }
}
NONE = "none"
"""In the place of a teacher: the first one, which learns from labels alone."""
PER_CLASS = 130_000
_DROPOUT = {"b0": 0.2, "b1": 0.2, "b2": 0.3, "b3": 0.3, "b4": 0.4, "b5": 0.4, "b6": 0.5, "b7": 0.5, "l2": 0.5}
_MAGNITUDE = {"b0": 0, "b1": 0, "b2": 6, "b3": 12, "b4": 15, "b5": 18, "b6": 24, "b7": 27, "l2": 27}


def noisy_student(
    at: Setting,
    *,
    teacher: str = NONE,
    ratio: int | None = None,
    threshold: float = 0.3,
    per_class: int | None = None,
    temperature: float = 1.0,
    hard: bool = False,
    magnitude: float | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    smoothing: float = 0.1,
    average: float = 0.9999,
    fraction: float | None = None,
    label_seed: int | None = None,
    answers: str = "",
) -> Recipe[Images]:
    """One round of Noisy Student: a student that learns from labels and from a teacher's answers.

    Parameters
    ----------
    at
        What the run knows.
    teacher
        A classifier's run, or none.
    ratio
        Unlabelled images to each labelled one in a batch, r. Default: 3, or 1 for EfficientNet-B0; up to 96 px 5.
    threshold
        Confidence below which an answer is left out.
    per_class
        Images of each class that the student is shown, by copies or by the most confident alone. Default: as many as
        there are unlabelled images to a class, at most 130,000.
    temperature
        Softens the teacher's answers above 1, T.
    hard
        Learn the most likely class alone, not the answers as they are.
    magnitude
        RandAugment's, 0 for none. Default: 27, less for small EfficientNets, 5 up to 96 px.
    dropout
        Before the classifier. Default: the EfficientNet's, else 0.5.
    drop_path
        Stochastic depth of the last block. Default: 0.2 where the backbone has residual branches.
    smoothing
        Of labels and of hard answers.
    average
        Decay of the weights' moving average, which is kept.
    fraction
        Share of each class's labels to learn from. Default: the teacher's, or all.
    label_seed
        Chooses which images those are. Default: the teacher's, or 0.
    answers
        The folder with the teacher's answers.
    """
    positive(threshold=threshold or 1.0, temperature=temperature, ratio=ratio, per_class=per_class)
    for name, share in (("dropout", dropout), ("drop-path", drop_path), ("smoothing", smoothing)):
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"--{name} is {share:g}; it lies from 0 to below 1")
    if not 0 <= threshold < 1 or not 0 <= average < 1:
        raise ValueError(f"--threshold is {threshold:g} and --average {average:g}; both lie from 0 to below 1")
    kind = efficientnet(getattr(at.encoder, "name", ""))
    r = 0 if teacher == NONE else usual_ratio(kind, small=at.small) if ratio is None else ratio
    share = at.batch_size or (128 if at.small else 2048)
    shown = _Shown(classes=at.classes)
    if at.training:
        shown = _labelled(at, 1.0 if fraction is None else fraction, label_seed or 0)
        if r:
            shown = shown.with_answers(Path(answers), threshold=threshold, per_class=per_class, seed=label_seed or 0)
        shown.check(share, r)
    _deepen_(at.encoder, drop_path)
    method = NoisyStudent(
        at.encoder,
        classes=at.classes,
        ratio=r,
        dropout=_DROPOUT.get(kind, 0.5) if dropout is None else dropout,
        smoothing=smoothing,
        temperature=temperature,
        hard=hard,
        average=average,
        labels=shown.labels,
        answers=shown.answers,
        rows=shown.rows,
    )
    method.online.requires_grad_(True)  # pyright: ignore[reportAttributeAccessIssue]
    set_scope_(method, "all")
    longer = 2 if not at.small and kind in ("b0", "b1", "b2", "b3", "b4") else 1
    epochs = at.epochs or (202 if at.small else 350 * longer)
    every = max(epochs - 5, 1) / FALLS if at.small else 2.4 * longer
    force = (5 if at.small else _MAGNITUDE.get(kind, 27)) if magnitude is None else magnitude
    main = OptimiserSpec(
        build=partial(RMSpropTF, alpha=0.9, momentum=0.9, eps=1e-3),
        lr=exponential(0.016 * share / 256, every=every, factor=0.97, warmup_epochs=5),
        weight_decay=constant(1e-4 if at.small else 1e-5),
        groups=all_but_norms(method),
    )
    total = share * (1 + r)
    return Recipe(
        method=method,
        views=noisy_view(_view(at), magnitude=force, hole=0.25 if at.small and force else 0.0),
        optimisers={"main": main},
        epochs=epochs,
        batch_size=total if at.training else min(total, at.samples),
        order=Mixed(len(shown.known), share, r) if r and at.training else SHUFFLED,
        images=shown.images,
    )


FALLS = np.log(0.0002 / 0.016) / np.log(0.97)
"""By 0.97 each, from the code's base rate to the final one of its example."""


def efficientnet(name: str) -> str:
    """Which EfficientNet a timm name means, ``b0`` to ``b7`` or ``l2``; nothing where it is no such one.

    >>> efficientnet("tf_efficientnet_b7.ns_jft_in1k"), efficientnet("resnet50")
    ('b7', '')
    """
    found = re.match(r"(?:tf_)?efficientnet_(b[0-7]|l2)(?:_ns)?(?:\.|$)", name)
    return found[1] if found else ""


def usual_ratio(kind: str, *, small: bool) -> int:
    """Unlabelled images to a labelled one, by the official scripts."""
    return 5 if small else 1 if kind == "b0" else 3


def all_but_norms(method: nn.Module) -> Callable[[str, nn.Parameter], Group]:
    """Everything decays, biases too, but batch norms' scales and shifts."""
    norms = (nn.modules.batchnorm._BatchNorm, ScopedBatchNorm)
    spared = {id(p) for m in method.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    return lambda name, parameter: Group(decay=id(parameter) not in spared, adapt=id(parameter) not in spared)


def _view(at: Setting) -> View:
    if at.small:
        return View(size=at.image_size, scale=None, padding=4, interpolation="bicubic")
    return View(size=at.image_size, scale=(0.08, 1.0), interpolation="bicubic")


def _deepen_(encoder: Any, rate: float | None) -> None:
    if rate == 0:
        return
    if not stochastic_depth_(encoder, 0.2 if rate is None else rate) and rate:
        raise ValueError("--drop-path needs a backbone with residual branches that timm can leave out; leave it out")


@dataclass(frozen=True)
class _Shown:
    """The images that a student is shown, and what it should say of them."""

    classes: int
    known: Any = ()
    labels: torch.Tensor | None = None
    images: np.ndarray | None = None
    answers: Callable[[torch.Tensor], torch.Tensor] | None = None
    rows: torch.Tensor | None = None

    def with_answers(self, folder: Path, *, threshold: float, per_class: int | None, seed: int) -> "_Shown":
        """With the images that a teacher has answered for: those it is sure of, as often as their class needs."""
        said = read_answers(folder)
        places = said.positions
        if set(places.tolist()) & set(np.asarray(self.known).tolist()):
            raise UserError(f"{folder} has answers for images whose label is used; delete it and go on")
        if said.classes != self.classes:
            raise UserError(f"{folder} has answers for {said.classes} classes, the images have {self.classes}")
        each = per_class or max(1, min(PER_CLASS, len(places) // self.classes))
        order = permutation(len(places), seed=seed, epoch=0, stream="copies")
        how: dict[str, Any] = {"threshold": threshold, "per_class": each, "order": order}
        copies = balanced(*said.best(), classes=self.classes, **how).copies
        kept = np.flatnonzero(copies)
        if not len(kept):
            raise ValueError(f"no answer is as sure as --threshold {threshold:g}; use a lower one, or a better teacher")

        def told(rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(said.rows(kept[rows.numpy()]))

        rows = np.repeat(np.arange(len(kept)), copies[kept])
        return _Shown(
            classes=self.classes,
            known=self.known,
            labels=self.labels,
            images=np.concatenate([self.known, places[kept][rows]]),
            answers=told,
            rows=torch.from_numpy(rows),
        )

    def check(self, share: int, ratio: int) -> None:
        """Refuses batches that the images do not fill."""
        if share > len(self.known):
            raise ValueError(f"--batch-size counts labelled images; it is {share}, but there are {len(self.known)}")
        others = 0 if self.rows is None else len(self.rows)
        if ratio * share > others:
            raise ValueError(
                f"a batch takes {ratio} x {share} unlabelled images, but {others} are kept; use a smaller --batch-size "
                "or --ratio, or a larger --per-class"
            )


def _labelled(at: Setting, fraction: float, seed: int) -> _Shown:
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction is {fraction:g}; it lies above 0, and 1 is all labels: 0.1 is 10 %")
    if at.labels is None or not (at.labels >= 0).any():
        raise ValueError("the images have no labels to learn from; give --labels FILE.csv (path,label)")
    known = labelled_fraction(at.labels, fraction, seed=seed)
    labels = torch.from_numpy(np.asarray(at.labels)[known].astype(np.int64))
    return _Shown(classes=at.classes, known=known, labels=labels, images=known)
