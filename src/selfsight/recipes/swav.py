r"""The recipe of SwAV (Caron et al., 2020, arXiv 2006.09882). The method: ``selfsight.methods.swav``.

Each view predicts the soft, balanced cluster assignment of another:
:math:`L = \frac1{|A|(V-1)} \sum_{s \in A} \sum_{v \ne s} \mathrm{CE}(q_s, \mathrm{softmax}(z_v C^\top / \tau))` with
:math:`q_s = \mathrm{Sinkhorn}(z_s C^\top / \varepsilon)`.

**Large images**: the official scripts' two columns, chosen by the batch. Below 1024: 0.6 x batch / 256 without warm-up
and a queue of 3840 from epoch 15 (256 for 200 epochs: 72.7 % linear on ImageNet with ResNet-50). From 1024 on: 4.8 x
batch / 4096, a warm-up of 10 epochs from 0.3, no queue (4096 for 800 epochs: 75.3 %). Both: SGD with apex's LARC on
every tensor, decay 1e-6, a thousandth of the rate at the end, 3000 prototypes that stand still for an epoch, two crops
of 224 and six of 96 pixels.

**Small images** (up to 96 px): lightly's CIFAR-10 benchmark (81.2 % kNN after 200 epochs at batch 128 with ResNet-18,
88.4 % after 800 at 512): Adam, 1e-3 x batch / 128, decay 1e-6, a cosine, 512 prototypes, no queue, nothing frozen, two
crops, half the jitter, no blur. It is the column that states what 200 epochs give. ``--cifar solo`` is solo-learn's
(89.2 % linear after 1000 epochs): its own LARS (η 0.02, clipped), 0.6 x batch / 256, batch 256, 3000 prototypes that
stand still for two epochs, a queue of 3840 from epoch 50, crops that blur and jitter as strongly as SimCLR's.
``--small-crops`` adds small crops to each.

**Differences**: batch norm sees the whole batch, as in the script for batch 256; the large runs' groups of 8 devices
are not kept. The official learning rates are for the stated batches alone, here they scale with it. A queue is rounded
down to a multiple of the batch, as in the code. A ResNet begins with a scale of zero in each block's last norm, the
code's with one.
"""

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from torch.optim import Adam

from selfsight.batches import MultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import TokenEncoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.swav import SwAV
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.prototypes import Prototypes
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive, skip_vectors
from selfsight.schedules import constant, cosine, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import multi_crop
from selfsight.views.view import View

CARDS = {
    "swav": {
        "family": "contrastive",
        "title": "SwAV",
        "year": 2020,
        "arxiv": "2006.09882",
        "fact": "Each view predicts the balanced cluster assignment of another.",
        "encoder": "resnet50",
    }
}

Cifar = Literal["lightly", "solo"]


class _Column(NamedTuple):
    """What differs between the columns above."""

    batch: int
    epochs: int
    prototypes: int
    hidden: int
    queue: int
    queue_epoch: float
    frozen: float
    crops: int


_LIGHTLY = _Column(128, 200, 512, 512, 0, 15, 0, 0)
_SOLO = _Column(256, 1000, 3000, 2048, 3840, 50, 2, 0)
_PAPER = _Column(256, 200, 3000, 2048, 3840, 15, 1, 6)


def _column(at: Setting, cifar: Cifar) -> _Column:
    columns = {"lightly": _LIGHTLY, "solo": _SOLO}
    if cifar not in columns:
        raise ValueError(f"--cifar is '{cifar}'; choose lightly or solo")
    if at.small:
        return columns[cifar]
    return _PAPER if (at.batch_size or 0) < 1024 else _PAPER._replace(queue=0)


def swav(
    at: Setting,
    *,
    prototypes: int | None = None,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: int | None = None,
    queue_epoch: float | None = None,
    frozen_epochs: float | None = None,
    large_crops: int = 2,
    small_crops: int | None = None,
    crop_boundary: float | None = None,
    projection: int = 128,
    head_norm: bool = True,
    hard_assignments: bool = False,
    cifar: Cifar = "lightly",
) -> Recipe[MultiCrop]:
    """SwAV: predict from one view the cluster that another was assigned to.

    Parameters
    ----------
    at
        What the run knows.
    prototypes
        Clusters. Default: 3000, for small images 512 (3000 with ``cifar`` solo).
    temperature
        The loss's temperature.
    epsilon
        The assignments' softness; 0.03 is the authors' first remedy against collapse.
    iterations
        Of the Sinkhorn algorithm.
    queue
        Earlier features that join in the assignment, a multiple of the batch. Default: 3840 for batches below 1024,
        none for larger ones and for small images (3840 with ``cifar`` solo).
    queue_epoch
        When the queue begins to be filled. Default: 15 (50 with ``cifar`` solo).
    frozen_epochs
        How long the prototypes stand still. Default: 1, for small images 0 (2 with ``cifar`` solo).
    large_crops
        Crops of the image's size, at least two, all of which are assigned.
    small_crops
        Crops of about 3/7 of the image's size. Default: 6, for small images 0.
    crop_boundary
        The share of an image's area at which small crops end and large ones begin; a larger one is milder. Default:
        0.14, without small crops 0.08 (0.14 with lightly's settings).
    projection
        Width of the projection.
    head_norm
        Batch norm in the projector; without it is one of the authors' remedies against collapse.
    hard_assignments
        Assign each view to one prototype alone, another of them.
    cifar
        Whose settings small images get: those of lightly's benchmark or solo-learn's.
    """
    positive(prototypes=prototypes, temperature=temperature, epsilon=epsilon, projection=projection)
    positive(crop_boundary=crop_boundary)
    column = _column(at, cifar)
    lightly = column is _LIGHTLY
    batch = at.batch_size or column.batch
    crops = column.crops if small_crops is None else small_crops
    if large_crops < 2:
        raise ValueError(f"--large-crops must be 2 or more, not {large_crops}")
    w, hidden = at.encoder.width, column.hidden
    method = SwAV(
        at.encoder,
        heads.mlp(w, hidden, projection, bias=not (lightly and head_norm), norm=head_norm),
        Prototypes(projection, prototypes or column.prototypes),
        temperature=temperature,
        epsilon=epsilon,
        iterations=iterations,
        frozen_epochs=column.frozen if frozen_epochs is None else frozen_epochs,
        queue=queue_length(queue, column.queue, batch),
        queue_epoch=column.queue_epoch if queue_epoch is None else queue_epoch,
        large_crops=large_crops,
        hard=hard_assignments,
    )
    set_scope_(method, "all")
    large, little = _views(at, column, crops, crop_boundary)
    return Recipe(
        method=method,
        views=multi_crop([large] * large_crops, [little] * crops),
        optimisers={"main": _optimiser(column, batch)},
        epochs=at.epochs or column.epochs,
        batch_size=batch,
    )


def _views(at: Setting, column: _Column, crops: int, boundary: float | None) -> tuple[View, View]:
    """A large crop and a small one."""
    boundary = boundary or (0.14 if crops or column is _LIGHTLY else 0.08)
    if column is _LIGHTLY:
        view = augment.moco_v2(at.image_size, blur=False)  # SwAV's with half the jitter, and ImageNet's numbers
    elif column is _SOLO:
        view = augment.small(at.image_size, kind="symmetric")
    else:
        view = augment.swav(at.image_size, scale=(boundary, 1.0))
    large = replace(view, scale=(boundary, 1.0))
    return large, replace(view, size=small_size(at), scale=(min(0.05, boundary), boundary))


def _optimiser(column: _Column, batch: int) -> OptimiserSpec:
    """The column of the batch."""
    groups = decay_all
    if column is _LIGHTLY:
        peak = 1e-3 * batch / 128
        build, lr = Adam, cosine(peak, 0.0)
    elif column is _SOLO:
        build = partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True)
        lr, groups = warmup_cosine(0.6 * batch / 256, warmup_epochs=10, start=3e-5), skip_vectors
    elif batch < 1024:
        peak = 0.6 * batch / 256
        build, lr = partial(LARS, momentum=0.9, variant="larc"), cosine(peak, peak / 1000)
    else:
        peak = 4.8 * batch / 4096
        build = partial(LARS, momentum=0.9, variant="larc")
        lr = warmup_cosine(peak, warmup_epochs=10, start=0.3, end=peak / 1000)
    return OptimiserSpec(build=build, lr=lr, weight_decay=constant(1e-6), groups=groups)


def queue_length(asked: int | None, default: int, batch: int) -> int:
    """The queue's length: as asked if that is a multiple of the batch, else the default rounded down to one.

    >>> queue_length(None, 3840, 256), queue_length(None, 3840, 500), queue_length(0, 3840, 256)
    (3840, 3500, 0)
    """
    if asked is None:
        return default // batch * batch
    if asked < 0 or asked % batch:
        raise ValueError(
            f"--queue {asked} is not a multiple of the batch of {batch}; use {max(asked, 0) // batch * batch}"
        )
    return asked


def small_size(at: Setting) -> int:
    """Pixels of a small crop: 96 for 224, else in proportion, a multiple of a transformer's patch or of 8."""
    unit = at.encoder.patch if isinstance(at.encoder, TokenEncoder) else 8
    return max(round(at.image_size * 96 / 224 / unit), 1) * unit


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with a queue; an ε of 0.03, since 0.05 evens out so small a batch."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    recipe = swav(at, prototypes=64, epsilon=0.03, queue=128, queue_epoch=4, frozen_epochs=0.1, projection=64)
    return {"swav": on_the_world(recipe)}
