r"""The recipe of DINO (Caron et al., 2021, arXiv 2104.14294). The method: ``selfsight.methods.dino``.

A student learns to say of each crop what its own moving average says of another:
:math:`L = \frac1{2V-2} \sum_{u=1}^2 \sum_{v \ne u} \mathrm{CE}(\mathrm{softmax}((t_u - c) / \tau_t),
\mathrm{softmax}(s_v / \tau_s))`.

**Transformers, large images**: the defaults of ``main_dino.py``, which are the README's "vanilla" run (100 epochs, 8 x
64 images, about 74 % linear on ImageNet with ViT-S/16): AdamW, 5e-4 x batch / 256 after a warm-up of 10 epochs, a
cosine to 1e-6, decay from 0.04 to 0.4 on a cosine, momentum from 0.996 to 1, clipping of each tensor at 3, drop path
0.1, τ_t 0.04, 65536 outputs, the last layer still for one epoch and of unit gain. The README's improved run (76.0 %) is
``--epochs 300 --batch-size 1024 --teacher-temperature 0.07 --no-fixed-gain``; the published ViT-S (77.0 %)
trained for 800 epochs, with ``--small-crops 10 --crop-boundary 0.25 --clip 0 --end-lr 1e-5`` besides.

**Convolutional nets, large images**: the README's ResNet-50 command: SGD, 0.03 x batch / 256, decay 1e-4, crops of
(0.14, 1) and (0.05, 0.14) of the area.

**Convolutional nets, small images** (up to 96 px): lightly's CIFAR-10 benchmark (84.0 % kNN after 200 epochs at batch
128 with ResNet-18): SGD, 0.06 x batch / 128, decay 5e-4, a cosine, momentum 0.99, 2048 outputs, a head of two layers
with batch norm, nothing frozen, no clipping, two crops, no blur. ``--cifar solo`` is solo-learn's (89.5 % linear after
1000 epochs): its own LARS (η 0.02, clipped), 0.3 x batch / 256, decay 1e-6, batch 256, 4096 outputs, the paper's head,
the last layer still for one epoch, τ_t 0.07, BYOL's pair of views without blur, and a momentum from 0.9995 to 1, with
which a few thousand updates learn from a teacher that has hardly left its start.

**Transformers, small images**: no source has a column for them. As for large images, with 4096 outputs, 200 epochs and
batch 256.

**Differences**: two crops alone take (0.14, 1) of the area, as the code advises, where lightly keeps (0.4, 1). Where
the teacher's temperature rises it does so with every update, over 30 epochs. The code advises a momentum of 0.9995 for
long runs at batch 256 and below.
"""

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from torch import nn
from torch.optim import SGD, AdamW

from selfsight.batches import MultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import TokenEncoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.dino import DINO
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.prototypes import DistillationHead
from selfsight.parts.stochastic_depth import drop_path_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive, skip_vectors
from selfsight.recipes.swav import small_size
from selfsight.schedules import constant, cosine, linear, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import multi_crop
from selfsight.views.view import View

CARDS = {
    "dino": {
        "family": "contrastive",
        "title": "DINO",
        "year": 2021,
        "arxiv": "2104.14294",
        "fact": "A student predicts, from any crop, its own moving average's output on another.",
        "encoder": "vit_small_patch16_224",
    }
}

Cifar = Literal["lightly", "solo"]


class _Column(NamedTuple):
    """What differs between the columns above."""

    batch: int
    epochs: int
    outputs: int
    crops: int
    momentum: float
    frozen: float
    large: tuple[float, float]
    small: tuple[float, float]
    temperature: float = 0.04
    end_lr: float = 1e-6


_LIGHTLY = _Column(128, 200, 2048, 0, 0.99, 0, (0.4, 1.0), (0.05, 0.4), end_lr=0.0)
_SOLO = _Column(256, 1000, 4096, 0, 0.9995, 1, (0.4, 1.0), (0.05, 0.4), temperature=0.07, end_lr=0.0)


def _column(at: Setting, cifar: Cifar) -> _Column:
    columns = {"lightly": _LIGHTLY, "solo": _SOLO}
    if cifar not in columns:
        raise ValueError(f"--cifar is '{cifar}'; choose lightly or solo")
    transformer = isinstance(at.encoder, TokenEncoder)
    if at.small and transformer:
        return _Column(256, 200, 4096, 0, 0.996, 1, (0.4, 1.0), (0.05, 0.4))
    if at.small:
        return columns[cifar]
    if transformer:
        return _Column(512, 100, 65536, 8, 0.996, 1, (0.4, 1.0), (0.05, 0.4))
    return _Column(512, 100, 65536, 8, 0.996, 1, (0.14, 1.0), (0.05, 0.14))


def dino(
    at: Setting,
    *,
    outputs: int | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float | None = None,
    momentum: float | None = None,
    centre_momentum: float = 0.9,
    frozen_epochs: float | None = None,
    fixed_gain: bool = True,
    head_norm: bool | None = None,
    temperature_epochs: float | None = None,
    small_crops: int | None = None,
    crop_boundary: float | None = None,
    drop_path: float | None = None,
    clip: float | None = None,
    end_lr: float | None = None,
    cifar: Cifar = "lightly",
) -> Recipe[MultiCrop]:
    """DINO: self-distillation with no labels.

    Parameters
    ----------
    at
        What the run knows.
    outputs
        Width of the output. Default: 65536, for small images 2048 (4096 for transformers and with ``cifar`` solo).
    student_temperature
        The student's temperature.
    teacher_temperature
        The teacher's; above 0.04 it rises to it from there. The authors found all above 0.07 unstable. Default: 0.04
        (0.07 with ``cifar`` solo).
    momentum
        The teacher's momentum at the start, rising to 1; with lightly's settings at all times. Default: 0.996, with
        lightly's settings 0.99, with ``cifar`` solo 0.9995.
    centre_momentum
        The centre's momentum.
    frozen_epochs
        How long the last layer stands still. Default: 1, with lightly's settings 0.
    fixed_gain
        Keep the last layer's rows at unit length: safer; the authors' ViT-S goes without.
    head_norm
        Batch norm in the head. Default: with lightly's settings only.
    temperature_epochs
        How long the teacher's temperature rises. Default: 30 (0 with ``cifar`` solo).
    small_crops
        Crops of about 3/7 of the image's size. Default: 8, for small images 0.
    crop_boundary
        The share of an image's area at which small crops end and large ones begin. Default: 0.4, with small crops of
        convolutional nets on large images and without any small crops 0.14 (0.08 with ``cifar`` solo). The authors'
        longest ViT-S has 0.25.
    drop_path
        The student's stochastic depth. Default: 0.1 for transformers, else none.
    clip
        The norm to which each tensor's gradient is clipped, 0 for none. Default: 3, for convolutional nets on small
        images none.
    end_lr
        The learning rate at the end; with ``--lr`` it moves with the whole curve. Default: 1e-6, for convolutional nets
        on small images 0.
    cifar
        Whose settings convolutional nets on small images get: those of lightly's benchmark or solo-learn's.
    """
    column = _column(at, cifar)
    warm = column.temperature if teacher_temperature is None else teacher_temperature
    positive(outputs=outputs, student_temperature=student_temperature, teacher_temperature=warm)
    positive(crop_boundary=crop_boundary)
    if clip is not None and clip < 0:
        raise ValueError(f"--clip must be 0, for none, or greater, not {clip:g}")
    if end_lr is not None and end_lr < 0:
        raise ValueError(f"--end-lr must be 0 or greater, not {end_lr:g}")
    transformer, solo = isinstance(at.encoder, TokenEncoder), column is _SOLO
    batch = at.batch_size or column.batch
    crops = column.crops if small_crops is None else small_crops
    start = column.momentum if momentum is None else momentum
    rise = (0 if solo else 30) if temperature_epochs is None else temperature_epochs
    method = DINO(
        at.encoder,
        _head(at.encoder.width, outputs or column.outputs, column, fixed_gain, head_norm),
        teacher_temperature=linear(min(0.04, warm), warm, epochs=rise),
        momentum=constant(start) if column is _LIGHTLY else cosine(start, 1.0),
        student_temperature=student_temperature,
        centre_momentum=centre_momentum,
        frozen_epochs=column.frozen if frozen_epochs is None else frozen_epochs,
    )
    drop_path_(method.student, (0.1 if transformer else 0.0) if drop_path is None else drop_path)
    set_scope_(method, "all")
    main = _optimiser(column, transformer, batch, column.end_lr if end_lr is None else end_lr)
    return Recipe(
        method=method,
        views=multi_crop(*_views(at, crops, column, crop_boundary)),
        optimisers={"main": main if clip is None else replace(main, clip=clip or None, clip_each="tensor")},
        epochs=at.epochs or column.epochs,
        batch_size=batch,
    )


def _head(width: int, outputs: int, column: _Column, fixed_gain: bool, norm: bool | None) -> DistillationHead:
    lightly = column is _LIGHTLY
    norm = lightly if norm is None else norm
    mlp = partial(heads.mlp, bias=not norm, norm=norm, activation=nn.GELU)
    if lightly:
        trunk = mlp(width, 2048, 256)
    else:
        trunk = mlp(width, 2048, 2048, 256, init=partial(nn.init.trunc_normal_, std=0.02))
    return DistillationHead(trunk, 256, outputs, fixed_gain=fixed_gain)


def _views(at: Setting, crops: int, column: _Column, boundary: float | None) -> tuple[list[View], list[View]]:
    """Two large crops that differ, and the small ones."""
    solo = column is _SOLO
    least, most = column.large[0] if crops else 0.08 if solo else 0.14, column.small[1]
    if boundary is not None:
        least = most = boundary
    large = [augment.dino(at.image_size, scale=(least, 1.0), view=view) for view in ("global1", "global2")]
    little = [augment.dino(small_size(at), scale=(min(column.small[0], most), most), view="local")] * crops
    if solo:
        large, little = ([replace(view, normalise=augment.CIFAR10) for view in views] for views in (large, little))
    if at.small:
        return [replace(view, blur=None) for view in large], [replace(view, blur=None) for view in little]
    return large, little


def _optimiser(column: _Column, transformer: bool, batch: int, end: float) -> OptimiserSpec:
    if transformer:
        return OptimiserSpec(
            build=AdamW,
            lr=warmup_cosine(5e-4 * batch / 256, warmup_epochs=10, end=end),
            weight_decay=cosine(0.04, 0.4),
            groups=skip_vectors,
            clip=3.0,
            clip_each="tensor",
        )
    if column is _SOLO:
        return OptimiserSpec(
            build=partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True),
            lr=warmup_cosine(0.3 * batch / 256, warmup_epochs=10, start=3e-5, end=end),
            weight_decay=constant(1e-6),
            groups=skip_vectors,
        )
    # torch's fused SGD refuses a parameter that joins later than the others, as a held one does
    sgd = partial(SGD, momentum=0.9, foreach=True)
    if column is _LIGHTLY:
        lr, decay = cosine(0.06 * batch / 128, end), constant(5e-4)
        return OptimiserSpec(build=sgd, lr=lr, weight_decay=decay, groups=decay_all)
    return OptimiserSpec(
        build=sgd,
        lr=warmup_cosine(0.03 * batch / 256, warmup_epochs=10, end=end),
        weight_decay=constant(1e-4),
        groups=skip_vectors,
        clip=3.0,
        clip_each="tensor",
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with small crops."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"dino": on_the_world(dino(at, outputs=256, momentum=0.95, frozen_epochs=0.1, small_crops=1))}
