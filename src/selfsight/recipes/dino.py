r"""The recipe of DINO (Caron et al., 2021, arXiv 2104.14294). The method: ``selfsight.methods.dino``.

A student learns to say of each crop what its own moving average says of another:
:math:`L = \frac1{2V-2} \sum_{u=1}^2 \sum_{v \ne u} \mathrm{CE}(\mathrm{softmax}((t_u - c) / \tau_t),
\mathrm{softmax}(s_v / \tau_s))`.

**Transformers, large images**: the defaults of ``main_dino.py``, which are the README's "vanilla" run (100 epochs, 8 x
64 images, about 74 % linear on ImageNet with ViT-S/16): AdamW, 5e-4 x batch / 256 after a warm-up of 10 epochs, a
cosine to 1e-6, decay from 0.04 to 0.4 on a cosine, momentum from 0.996 to 1, clipping of each tensor at 3, drop path
0.1, τ_t 0.04, 65536 outputs, the last layer still for one epoch and of unit gain. The README's improved run (76.1 %) is
``--epochs 300 --batch-size 1024 --teacher-temperature 0.07 --no-fixed-gain``.

**Convolutional nets, large images**: the README's ResNet-50 command: SGD, 0.03 x batch / 256, decay 1e-4, crops of
(0.14, 1) and (0.05, 0.14) of the area.

**Convolutional nets, small images** (up to 96 px): lightly's CIFAR-10 benchmark (84.0 % kNN after 200 epochs at batch
128 with ResNet-18): SGD, 0.06 x batch / 128, decay 5e-4, a cosine, momentum 0.99, 2048 outputs, a head of two layers
with batch norm, nothing frozen, no clipping, two crops, no blur. solo-learn's column (89.5 % linear after 1000 epochs)
has a momentum of 0.9995, with which a few thousand updates learn from a teacher that has hardly left its start.

**Transformers, small images**: no source has a column for them. As for large images, with 4096 outputs, 200 epochs and
batch 256.

**Differences**: two crops alone take (0.14, 1) of the area, as the code advises, where lightly keeps (0.4, 1). Where
the teacher's temperature rises it does so with every update, over 30 epochs. The code advises a momentum of 0.9995 for
long runs at batch 256 and below.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.optim import SGD, AdamW

from selfsight.batches import MultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import TokenEncoder
from selfsight.methods.dino import DINO
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.prototypes import DistillationHead
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


class _Column(NamedTuple):
    """What differs between the four columns above."""

    batch: int
    epochs: int
    outputs: int
    crops: int
    momentum: float
    frozen: float
    large: tuple[float, float]
    small: tuple[float, float]


def _column(at: Setting) -> _Column:
    transformer = isinstance(at.encoder, TokenEncoder)
    if at.small and transformer:
        return _Column(256, 200, 4096, 0, 0.996, 1, (0.4, 1.0), (0.05, 0.4))
    if at.small:
        return _Column(128, 200, 2048, 0, 0.99, 0, (0.4, 1.0), (0.05, 0.4))
    if transformer:
        return _Column(512, 100, 65536, 8, 0.996, 1, (0.4, 1.0), (0.05, 0.4))
    return _Column(512, 100, 65536, 8, 0.996, 1, (0.14, 1.0), (0.05, 0.14))


def dino(
    at: Setting,
    *,
    outputs: int | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    momentum: float | None = None,
    centre_momentum: float = 0.9,
    frozen_epochs: float | None = None,
    fixed_gain: bool = True,
    head_norm: bool | None = None,
    temperature_epochs: float = 30,
    small_crops: int | None = None,
    crop_boundary: float | None = None,
    drop_path: float | None = None,
    clip: float | None = None,
) -> Recipe[MultiCrop]:
    """DINO: self-distillation with no labels.

    Parameters
    ----------
    at
        What the run knows.
    outputs
        Width of the output. Default: 65536, for small images 2048 (transformers 4096).
    student_temperature
        The student's temperature.
    teacher_temperature
        The teacher's; above 0.04 it rises to it from there. The authors found all above 0.07 unstable.
    momentum
        The teacher's momentum at the start, rising to 1; for convolutional nets on small images, at all times. Default:
        0.996, for the latter 0.99.
    centre_momentum
        The centre's momentum.
    frozen_epochs
        How long the last layer stands still. Default: 1, for convolutional nets on small images 0.
    fixed_gain
        Keep the last layer's rows at unit length: safer; the authors' ViT-S goes without.
    head_norm
        Batch norm in the head. Default: for convolutional nets on small images only.
    temperature_epochs
        How long the teacher's temperature rises.
    small_crops
        Crops of about 3/7 of the image's size. Default: 8, for small images 0.
    crop_boundary
        The share of an image's area at which small crops end and large ones begin. Default: 0.4, with small crops of
        convolutional nets on large images and without any small crops 0.14. The authors' longest ViT-S has 0.25.
    drop_path
        The student's stochastic depth. Default: 0.1 for transformers, else none.
    clip
        The norm to which each tensor's gradient is clipped, 0 for none. Default: 3, for convolutional nets on small
        images none.
    """
    positive(outputs=outputs, student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    positive(crop_boundary=crop_boundary)
    if clip is not None and clip < 0:
        raise ValueError(f"--clip must be 0, for none, or greater, not {clip:g}")
    column = _column(at)
    transformer = isinstance(at.encoder, TokenEncoder)
    small_net = at.small and not transformer
    batch = at.batch_size or column.batch
    crops = column.crops if small_crops is None else small_crops
    start = column.momentum if momentum is None else momentum
    method = DINO(
        at.encoder,
        _head(at.encoder.width, outputs or column.outputs, small_net, fixed_gain, head_norm),
        teacher_temperature=linear(min(0.04, teacher_temperature), teacher_temperature, epochs=temperature_epochs),
        momentum=constant(start) if small_net else cosine(start, 1.0),
        student_temperature=student_temperature,
        centre_momentum=centre_momentum,
        frozen_epochs=column.frozen if frozen_epochs is None else frozen_epochs,
    )
    stochastic_depth_(method.student, (0.1 if transformer else 0.0) if drop_path is None else drop_path)
    set_scope_(method, "all")
    main = _optimiser(at.small, transformer, batch)
    return Recipe(
        method=method,
        views=multi_crop(*_views(at, crops, column, crop_boundary)),
        optimisers={"main": main if clip is None else replace(main, clip=clip or None, clip_each="tensor")},
        epochs=at.epochs or column.epochs,
        batch_size=batch,
    )


def _head(width: int, outputs: int, small_net: bool, fixed_gain: bool, norm: bool | None) -> DistillationHead:
    norm = small_net if norm is None else norm
    mlp = partial(heads.mlp, bias=not norm, norm=norm, activation=nn.GELU)
    if small_net:
        trunk = mlp(width, 2048, 256)
    else:
        trunk = mlp(width, 2048, 2048, 256, init=partial(nn.init.trunc_normal_, std=0.02))
    return DistillationHead(trunk, 256, outputs, fixed_gain=fixed_gain)


def _views(at: Setting, crops: int, column: _Column, boundary: float | None) -> tuple[list[View], list[View]]:
    """Two large crops that differ, and the small ones."""
    least, most = column.large[0] if crops else 0.14, column.small[1]
    if boundary is not None:
        least = most = boundary
    large = [augment.dino(at.image_size, scale=(least, 1.0), view=view) for view in ("global1", "global2")]
    little = [augment.dino(small_size(at), scale=(min(column.small[0], most), most), view="local")] * crops
    if at.small:
        return [replace(view, blur=None) for view in large], [replace(view, blur=None) for view in little]
    return large, little


def _optimiser(small: bool, transformer: bool, batch: int) -> OptimiserSpec:
    if transformer:
        return OptimiserSpec(
            build=AdamW,
            lr=warmup_cosine(5e-4 * batch / 256, warmup_epochs=10, end=1e-6),
            weight_decay=cosine(0.04, 0.4),
            groups=skip_vectors,
            clip=3.0,
            clip_each="tensor",
        )
    # torch's fused SGD refuses a parameter that joins later than the others, as a held one does
    sgd = partial(SGD, momentum=0.9, foreach=True)
    if small:
        lr, decay = cosine(0.06 * batch / 128, 0.0), constant(5e-4)
        return OptimiserSpec(build=sgd, lr=lr, weight_decay=decay, groups=decay_all)
    return OptimiserSpec(
        build=sgd,
        lr=warmup_cosine(0.03 * batch / 256, warmup_epochs=10, end=1e-6),
        weight_decay=constant(1e-4),
        groups=skip_vectors,
        clip=3.0,
        clip_each="tensor",
    )


def stochastic_depth_(encoder: Any, rate: float) -> None:
    """Gives a transformer's blocks drop path, growing linearly from 0 to ``rate``, unless it was built with its own."""
    blocks = getattr(getattr(encoder, "model", None), "blocks", None)
    if not rate or any(isinstance(m, DropPath) for m in encoder.modules()):
        return
    if blocks is None or not all(hasattr(block, "drop_path1") and hasattr(block, "drop_path2") for block in blocks):
        raise ValueError("--drop-path is for vision transformers, whose blocks have residual branches; leave it out")
    for block, share in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        if share:
            block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with small crops."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"dino": on_the_world(dino(at, outputs=256, momentum=0.95, frozen_epochs=0.1, small_crops=1))}
