r"""Fine-tuning on all or a fraction of the labels, beside the same encoder trained from scratch on the same budget.

The labelled fraction is balanced by class and picked by key, as SimCLR's 1 % and 10 % lists are (arXiv 2002.05709).
Crop (8 to 100 % of the area) and flip are the augmentation, as there. What is mixed, smoothed or dropped besides says
``selfsight.evaluation.regularisation``: by default nothing here, and for transformers on all labels what MAE has.

* Transformers, and ConvMAE's hybrid: AdamW (0.9, 0.999), decay 0.05, rate 5e-4 B/256 with 5 epochs of warm-up and a
  cosine to 1e-6, and layer-wise decay 0.65 of the rate (MAE, arXiv 2111.06377, its settings for ViT-B).
* Convolutional encoders: SGD with Nesterov momentum 0.9, rate 0.05 B/256, no warm-up, no decay (SimCLR's settings for
  1 % and 10 %), cosine to 0, classifier from zero.

**Differences**: no RandAugment and no random erasing, so a large transformer's numbers lie below MAE's; the encoder's
own pooled feature is classified. From scratch there is no layer-wise decay, which would keep early layers at their
random start. Smoothing without mixing is on the labels that learn alone, never on the score.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, AdamW

from selfsight import keyed
from selfsight.encoders.drop_path import set_drop_path_
from selfsight.encoders.protocol import Encoder, MaskableEncoder, StagedEncoder, TokenEncoder
from selfsight.engine.optimisers import build_optimiser, layer_decay, skip_vectors_and_tokens
from selfsight.errors import UserError
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.regularisation import Loss, Regularisation, by_key
from selfsight.evaluation.score import Score, score
from selfsight.evaluation.stream import average_buffers_
from selfsight.parts.head_layers import backbone_of
from selfsight.precision import bf16_training
from selfsight.recipes.recipe import Group, OptimiserSpec, decay_all
from selfsight.schedules import constant, cosine, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The settings of one fine-tuning; they are saved with its score."""

    fraction: float
    labelled: int
    epochs: int
    batch_size: int
    optimiser: str
    lr: float
    """Peak rate, before it is scaled by the batch / 256."""
    layer_decay: float
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    drop_path: float = 0.0


def by_tokens(encoder: Encoder) -> bool:
    """Whether an encoder is fine-tuned as a transformer."""
    return isinstance(backbone_of(encoder), TokenEncoder | MaskableEncoder | StagedEncoder)


def standard_epochs(fraction: float, *, tokens: bool) -> int:
    """60 epochs up to 1 % of the labels, 30 up to 10 % (SimCLR); for all of them 100 (MAE, ViT-B) or 30."""
    if fraction <= 0.01:
        return 60
    return 100 if tokens and fraction > 0.1 else 30


def labelled_fraction(labels: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """The positions of ``fraction`` of each class, at least one of each, picked by key; unknown labels (-1) never.

    A larger fraction holds every image of a smaller one.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> np.bincount(labels[labelled_fraction(labels, 0.01, seed=0)]).tolist()
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of labels is {fraction}; it must lie above 0 and not above 1")
    order = keyed.permutation(len(labels), seed=seed, epoch=0, stream="labelled")
    shuffled = labels[order]
    parts = []
    for label in np.unique(labels[labels >= 0]):
        members = order[shuffled == label]
        parts.append(members[: max(round(fraction * len(members)), 1)])
    return np.sort(np.concatenate(parts))


def optimiser_spec(tuning: Tuning, encoder: Encoder) -> OptimiserSpec:
    """The optimiser and schedule for this kind of encoder, its rate scaled by the batch."""
    peak = tuning.lr * tuning.batch_size / 256
    groups: Callable[[str, nn.Parameter], Group] = decay_all if tuning.optimiser == "sgd" else skip_vectors_and_tokens
    if tuning.layer_decay != 1:
        try:
            groups = layer_decay(cast(nn.Module, backbone_of(encoder)), tuning.layer_decay, groups)
        except ValueError as error:
            raise UserError(str(error)) from error
    if tuning.optimiser == "sgd":
        build: partial[Any] = partial(SGD, momentum=0.9, nesterov=True)
        return OptimiserSpec(build=build, lr=cosine(peak, 0.0), weight_decay=constant(0.0), groups=groups)
    return OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.999)),
        lr=warmup_cosine(peak, warmup_epochs=5, end=min(1e-6, peak)),
        weight_decay=constant(0.05),
        groups=groups,
    )


def finetune(
    encoder: Encoder,
    lesson: Lesson,
    *,
    fraction: float = 1.0,
    scratch: bool = False,
    layer_decay: float | None = None,
    regularisation: Regularisation | None = None,
) -> tuple[Score, Tuning]:
    """Fine-tunes a copy of ``encoder`` on the lesson's images, already cut to ``fraction``, and scores it.

    ``fraction`` here only picks the length of the training. ``scratch`` says that the encoder is at its random start.
    ``layer_decay`` is 0.65 for a pretrained transformer unless it is given, and ``regularisation`` none. The encoder
    that was handed over stays as it was.
    """
    place, tokens = lesson.place, by_tokens(encoder)
    usual = 0.65 if tokens else 1.0
    parts, batch = (regularisation or Regularisation()).for_batch(lesson.batch(256))
    tuning = Tuning(
        fraction=fraction,
        labelled=len(lesson.train),
        epochs=lesson.epochs or standard_epochs(fraction, tokens=tokens),
        batch_size=batch,
        optimiser="adamw" if tokens else "sgd",
        lr=lesson.lr if lesson.lr is not None else (5e-4 if tokens else 0.05),
        layer_decay=1.0 if scratch else usual if layer_decay is None else layer_decay,
        **asdict(parts),
    )
    model = _Classifier(copy.deepcopy(encoder), lesson.classes, zero=not tokens, seed=lesson.seed).to(place.device)
    model.requires_grad_(True).train()
    set_drop_path_(cast(nn.Module, backbone_of(model.encoder)), parts.drop_path)
    spec, loss_of = optimiser_spec(tuning, model.encoder), Loss(parts, lesson.classes)
    optimiser = build_optimiser(spec, model.named_parameters())
    for x, labels, clock in lesson.batches(epochs=tuning.epochs, batch_size=tuning.batch_size):
        with by_key(lesson.seed, clock.step, x.device):
            seen, target = loss_of.mixed(x, labels)
            with bf16_training(x.device.type) if lesson.precision == "bf16" else nullcontext():
                logits = model(seen)
        lesson.update_(optimiser, spec, loss_of(logits.float(), target), clock)
    average_buffers_(model)
    held = lesson.tested(cast(Encoder, model))
    return score(held.x, held.labels), tuning


class _Classifier(nn.Module):
    """An encoder and a linear classifier of its pooled feature; an encoder itself, whose features are the logits."""

    def __init__(self, encoder: Encoder, classes: int, *, zero: bool, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, classes)
        self.width, self.stride = classes, encoder.stride
        with torch.no_grad():
            if zero:
                self.head.weight.zero_()
            else:  # MAE's code: all but zero, so that the first updates do not tear the encoder apart
                nn.init.trunc_normal_(self.head.weight, std=2e-5, generator=torch.Generator().manual_seed(seed))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder.dense(x)
