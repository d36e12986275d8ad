"""``linear-sgd``: the papers' linear probes, a classifier trained on the frozen encoder under augmentation.

Both crop (8 to 100 % of the area) and flip; the encoder stays in evaluation mode, so its batch-norm statistics stand.

| | ``moco`` (He et al., 2020, arXiv 1911.05722) | ``mae`` (He et al., 2022, arXiv 2111.06377) |
|---|---|---|
| classifier | linear, weights N(0, 0.01), bias 0 | the same behind batch norm without scale, eps 1e-6 |
| optimiser | SGD, momentum 0.9, no decay | LARS, momentum 0.9, trust 0.001, no decay, vectors not adapted |
| rate | 30 B/256, x 0.1 at 60 % and 80 % | 0.1 B/256, warm-up 10 epochs, cosine to 0 |
| epochs, batch | 100, 256 | 90, 16384 (here 1024) |

**Differences**: the rate is scaled by the batch in both, where MoCo's code has 256 alone; where the training set has
fewer images than the batch, the batch is the training set. With fewer epochs the schedules shrink with them. MAE's
probe moves with the number of images: on 10,000 it hardly leaves its start, and wants a higher rate or more epochs.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from selfsight.encoders.protocol import Encoder
from selfsight.engine.optimisers import LARS, build_optimiser
from selfsight.evaluation.features import encode, frozen
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.score import Score, score
from selfsight.evaluation.stream import Place, average_buffers_
from selfsight.recipes.recipe import OptimiserSpec, skip_vectors
from selfsight.schedules import Curve, constant, steps, warmup_cosine

Paper = Literal["moco", "mae"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The settings of one probe; they are saved with its score."""

    paper: Paper
    epochs: int
    batch_size: int
    lr: float
    """Peak rate, before it is scaled by the batch / 256."""


PROBES: dict[Paper, Probe] = {
    "moco": Probe(paper="moco", epochs=100, batch_size=256, lr=30.0),
    "mae": Probe(paper="mae", epochs=90, batch_size=1024, lr=0.1),
}


def classifier(paper: Paper, width: int, classes: int, *, seed: int) -> nn.Sequential:
    """The head of one paper's probe; equal seeds give equal weights on every process."""
    linear = nn.Linear(width, classes)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0, 0.01, generator=rng)
        linear.bias.zero_()
    norm = nn.Identity() if paper == "moco" else nn.BatchNorm1d(width, affine=False, eps=1e-6)
    return nn.Sequential(norm, linear)


def optimiser_spec(probe: Probe) -> OptimiserSpec:
    """The optimiser and schedule of one paper's probe, its rate scaled by the batch."""
    peak = probe.lr * probe.batch_size / 256
    build: partial[Optimizer] = partial(SGD, momentum=0.9)
    rate: Curve = steps(peak, at=(0.6, 0.8), factor=0.1)
    if probe.paper == "mae":
        build, rate = partial(LARS, momentum=0.9, eta=1e-3, variant="byol"), warmup_cosine(peak, warmup_epochs=10)
    return OptimiserSpec(build=build, lr=rate, weight_decay=constant(0.0), groups=skip_vectors)


def linear_sgd(encoder: Encoder, lesson: Lesson, *, paper: Paper = "moco") -> tuple[Score, Probe]:
    """Trains one paper's probe on the frozen ``encoder`` and scores it on the lesson's test images.

    Epochs, batch and rate default to the paper's; what was used is returned beside the score. Nothing of the encoder
    changes, parameters or buffers.
    """
    place, standard = lesson.place, PROBES[paper]
    probe = replace(
        standard,
        epochs=lesson.epochs or standard.epochs,
        batch_size=lesson.batch(standard.batch_size),
        lr=standard.lr if lesson.lr is None else lesson.lr,
    )
    cast(nn.Module, encoder).to(place.device)
    head = classifier(paper, encoder.width, lesson.classes, seed=lesson.seed).to(place.device)
    spec = optimiser_spec(probe)
    optimiser = build_optimiser(spec, head.named_parameters())
    with frozen(encoder):
        for x, labels, clock in lesson.batches(epochs=probe.epochs, batch_size=probe.batch_size):
            with torch.no_grad():
                features = encode(encoder, x, precision=lesson.precision)
            lesson.update_(optimiser, spec, cross_entropy(head(features), labels), clock)
    average_buffers_(head)  # batch norm is local to a process while it trains, as in MAE's code
    held = lesson.tested(encoder)
    return score(_answers(head.eval(), held.x, place), held.labels), probe


@torch.inference_mode()
def _answers(head: nn.Module, x: Tensor, place: Place) -> Tensor:
    return torch.cat([head(part.to(place.device)).cpu() for part in x.split(4096)])
