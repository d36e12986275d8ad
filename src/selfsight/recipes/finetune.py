r"""The recipe of SimCLR v2's fine-tuning (arXiv 2006.10029). The method: ``selfsight.methods.finetuning``.

LARS with 0.005 √batch and a cosine to 0, no warm-up, no decay, batch 1024, 60 epochs for up to 1 % of the labels and 30
for more; crop and flip alone; batch norm over all processes (the README's command for 1 %; the 30 epochs are the
paper's, which takes 0.002 √batch for its wider encoders). Small images get the same: neither paper nor code has others.

**Differences**: the first layer of the head stays whatever the share of labels, as in the paper with 1 % and 10 %; with
the labels of all images it begins at the encoder (``--head-layers 0``). The classifier's rate is not adapted, as in the
code (``head_supervised``). Its separate decay is zero.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from selfsight.batches import Images
from selfsight.engine.optimisers import LARS
from selfsight.evaluation.finetune import labelled_fraction
from selfsight.evaluation.subject import crop_of
from selfsight.methods.finetuning import FineTuning
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.head_layers import WithHead, first_layers
from selfsight.recipes import catalogue
from selfsight.recipes.recipe import Group, OptimiserSpec, Recipe, Setting, skip_vectors
from selfsight.schedules import constant, cosine

STAGES = {
    "finetune": {
        "family": "supervised",
        "title": "Fine-tuning",
        "year": 2020,
        "arxiv": "2006.10029",
        "fact": "Trains a pretrained run, with the first layers of its head, on few labels.",
        "takes": "init_from",
        "fixed": ("pretext", "backbone", "patch_size", "image_size", "channels", "pretrained", "probe_every"),
    }
}


def finetune(
    at: Setting,
    *,
    fraction: float = 1.0,
    head_layers: int = 1,
    label_seed: int = 0,
    pretext: Mapping[str, Any],
) -> Recipe[Images]:
    """Fine-tuning from a layer of the head, on a fraction of the labels.

    Parameters
    ----------
    at
        What the run knows.
    fraction
        Share of each class's labels to learn from, at least one image of each: 0.01 is 1 %.
    head_layers
        So many layers of the pretrained head stay, as a part of the encoder. 0 is the encoder alone, the paper's choice
        where all images are labelled.
    label_seed
        Chooses which images those are.
    pretext
        The pretraining: its method, hyper-parameters, batch and epochs.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction is {fraction:g}; it lies above 0, and 1 is all labels: 0.1 is 10 %")
    before = pretraining(at, pretext)
    head = getattr(before.method, "projector", None)
    if head_layers and head is None:
        raise ValueError(f"{pretext['method']} has no head whose layers could stay; use --head-layers 0")
    layers = first_layers(head if head_layers else nn.Sequential(), head_layers)  # pyright: ignore[reportArgumentType]
    seen = None
    if at.training:
        if at.labels is None or not (at.labels >= 0).any():
            raise ValueError("the images have no labels to fine-tune on; give --labels FILE.csv (path,label)")
        seen = labelled_fraction(at.labels, fraction, seed=label_seed)
    labels = None if seen is None else torch.from_numpy(np.asarray(at.labels)[seen].astype(np.int64))
    width = WithHead(at.encoder, layers).width
    method = FineTuning(at.encoder, layers, width=width, classes=at.classes, labels=labels)
    set_scope_(method.requires_grad_(True), "all")
    batch = at.batch_size or 1024
    main = OptimiserSpec(
        build=partial(LARS, momentum=0.9, eta=1e-3, variant="simclr"),
        lr=cosine(0.005 * batch**0.5, 0.0),
        weight_decay=constant(0.0),
        groups=without_classifier,
    )
    return Recipe(
        method=method,
        views=crop_of(before.views.plain),  # pyright: ignore[reportArgumentType]
        optimisers={"main": main},
        epochs=at.epochs or (60 if fraction <= 0.01 else 30),
        batch_size=batch,
        images=seen,
    )


def pretraining(at: Setting, pretext: Mapping[str, Any]) -> Recipe[Any]:
    """The recipe of the pretraining, for its head and its evaluation view; its encoder is ``at.encoder``."""
    then = Setting(
        encoder=at.encoder,
        image_size=at.image_size,
        channels=at.channels,
        samples=at.samples,
        epochs=pretext["epochs"],
        batch_size=pretext["batch_size"],
        begun=at.begun,
    )
    return catalogue.recipe_function(pretext["method"])(then, **pretext["hyper"])


def without_classifier(name: str, parameter: nn.Parameter) -> Group:
    """As ``skip_vectors``; the classifier neither decays nor adapts."""
    return Group(decay=False, adapt=False) if name.startswith("classifier.") else skip_vectors(name, parameter)
