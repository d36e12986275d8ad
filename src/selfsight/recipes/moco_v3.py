r"""The recipe of MoCo v3 (Chen et al., 2021, arXiv 2104.02057). The method: ``selfsight.methods.moco_v3``.

Momentum contrast within the batch, with a predictor and both directions:
:math:`L = \mathrm{ctr}(q_1, k_2) + \mathrm{ctr}(q_2, k_1)`, :math:`\mathrm{ctr}(q, k) = -\frac{2\tau}B \sum_b
\log \big(e^{\hat q_b^\top \hat k_b / \tau} / \sum_j e^{\hat q_b^\top \hat k_j / \tau}\big)`.

**Transformers, large images**: ``CONFIG.md`` (73.2 % linear on ImageNet with ViT-S/16, 76.7 % with ViT-B/16): AdamW,
1.5e-4 x batch / 256 after a warm-up of 40 epochs, decay 0.1 on every parameter, batch 4096, 300 epochs, τ 0.2, momentum
0.99 to 1, crops of (0.08, 1), a projector of three layers and a predictor of two, batch norm behind each. The patch
projection stays as it was drawn, positions are fixed sines and cosines. Its ViT-S has 12 heads, timm's has 6; the
default encoder has 12.

**Convolutional nets, large images**: ``CONFIG.md`` for ResNet-50 (74.6 % after 1000 epochs): LARS, 0.3 x batch / 256
after a warm-up of 10 epochs, batch 4096, τ 1, crops of (0.2, 1), a projector of two layers, no norm behind the
predictor. Learning rate, decay and momentum depend on the length of the training; the row of the next longer is taken.

**Convolutional nets, small images** (up to 96 px): solo-learn's CIFAR-10 settings (93.1 % linear with ResNet-18): its
own LARS (η 0.02, clipped), 0.3 x batch / 256, decay 1e-6, batch 256, 1000 epochs, τ 0.2, momentum 0.99 to 1, no blur.

**Transformers, small images**: no source has a column for them. As for large images, with batch 256 and no blur.

**Differences**: an encoder that was trained before keeps its weights, and its positions are trained unless they are
these fixed ones; its patch projection is frozen all the same. The code's table of positions has row and column
exchanged, which renames channels and no more.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.optim import AdamW

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import TokenEncoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.moco_v3 import MoCoV3
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.decoders import xavier_
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive, skip_vectors
from selfsight.schedules import constant, cosine, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views
from selfsight.views.view import View

CARDS = {
    "moco_v3": {
        "family": "contrastive",
        "title": "MoCo v3",
        "year": 2021,
        "arxiv": "2104.02057",
        "fact": "MoCo without its queue, with a predictor, for transformers with a frozen first layer.",
        "encoder": "vit_small_patch16_224",
        "options": {"num_heads": 12},
    }
}


class _Column(NamedTuple):
    """What differs between the columns above."""

    batch: int
    epochs: int
    base: float
    decay: float
    momentum: float
    temperature: float
    smallest_crop: float


_BY_EPOCHS = {
    100: _Column(4096, 100, 0.6, 1e-6, 0.99, 1.0, 0.2),
    300: _Column(4096, 300, 0.3, 1e-6, 0.99, 1.0, 0.2),
    1000: _Column(4096, 1000, 0.3, 1.5e-6, 0.996, 1.0, 0.2),
}
"""ResNet-50's rows in ``CONFIG.md``."""


def _column(at: Setting) -> _Column:
    if isinstance(at.encoder, TokenEncoder):
        return _Column(256 if at.small else 4096, 300, 1.5e-4, 0.1, 0.99, 0.2, 0.08)
    if at.small:
        return _Column(256, 1000, 0.3, 1e-6, 0.99, 0.2, 0.08)
    return next((row for longest, row in _BY_EPOCHS.items() if (at.epochs or 1000) <= longest), _BY_EPOCHS[1000])


def moco_v3(
    at: Setting,
    *,
    temperature: float | None = None,
    momentum: float | None = None,
    projection: int = 256,
    hidden: int = 4096,
    smallest_crop: float | None = None,
    frozen_patches: bool = True,
) -> Recipe[TwoViews]:
    """MoCo v3: momentum contrast within the batch, for transformers too.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature. Default: 0.2, for convolutional nets on large images 1.
    momentum
        The key encoder's momentum at the start; it rises to 1 on a cosine. Default: 0.99, for convolutional nets on
        large images 0.996 where they train for more than 300 epochs.
    projection
        Width of projection and prediction.
    hidden
        Width of the hidden layers in both heads.
    smallest_crop
        The least share of an image's area that a view shows. Default: 0.08, for convolutional nets on large images 0.2.
    frozen_patches
        Leave a transformer's patch projection as it was drawn, which keeps its training stable.
    """
    positive(temperature=temperature, projection=projection, hidden=hidden, smallest_crop=smallest_crop)
    column = _column(at)
    transformer = isinstance(at.encoder, TokenEncoder)
    if isinstance(at.encoder, TokenEncoder):
        start_(at.encoder, at.image_size, trained=at.begun, frozen_patches=frozen_patches)
    batch = at.batch_size or column.batch
    layers = (hidden, hidden) if transformer else (hidden,)
    head = partial(heads.mlp, bias=False, out_bias=False)
    method = MoCoV3(
        at.encoder,
        head(at.encoder.width, *layers, projection, out_norm="plain"),
        head(projection, hidden, projection, out_norm="plain" if transformer else "none"),
        temperature=temperature or column.temperature,
        momentum=cosine(column.momentum if momentum is None else momentum, 1.0),
    )
    set_scope_(method, "all")
    return Recipe(
        method=method,
        views=two_views(*_views(at, smallest_crop or column.smallest_crop)),
        optimisers={"main": _optimiser(at.small, transformer, column, batch)},
        epochs=at.epochs or column.epochs,
        batch_size=batch,
    )


def _views(at: Setting, smallest: float) -> list[View]:
    """BYOL's pair with bilinear crops and Pillow's kind of blur; solo-learn's for small images."""
    scale = (smallest, 1.0)
    if at.small:
        return [replace(augment.small(at.image_size, kind="asymmetric", view=view), scale=scale) for view in (1, 2)]
    pair = [augment.barlow_twins(at.image_size, view=view) for view in (1, 2)]
    return [replace(view, scale=scale, interpolation="bilinear") for view in pair]


def _optimiser(small: bool, transformer: bool, column: _Column, batch: int) -> OptimiserSpec:
    peak, decay = column.base * batch / 256, constant(column.decay)
    if transformer:
        lr = warmup_cosine(peak, warmup_epochs=40, parts=7)  # 40 of 300 epochs are more than a tenth
        return OptimiserSpec(build=AdamW, lr=lr, weight_decay=decay, groups=decay_all)
    if small:
        build = partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True)
        lr = warmup_cosine(peak, warmup_epochs=10, start=3e-5)
    else:
        build = partial(LARS, momentum=0.9, eta=1e-3, variant="byol")
        lr = warmup_cosine(peak, warmup_epochs=10)
    return OptimiserSpec(build=build, lr=lr, weight_decay=decay, groups=skip_vectors)


@torch.no_grad()
def start_(encoder: TokenEncoder, image_size: int, *, trained: bool, frozen_patches: bool = True) -> None:
    """MoCo v3's start of a vision transformer: Xavier with query, key and value apart, fixed positions, frozen patches.

    A ``trained`` one keeps its weights; positions that are these already are fixed again.
    """
    model: Any = getattr(encoder, "model", encoder)
    grid = image_size // encoder.patch
    positions, patches = getattr(model, "pos_embed", None), getattr(getattr(model, "patch_embed", None), "proj", None)
    if (
        not isinstance(positions, nn.Parameter)
        or positions.ndim != 3
        or positions.shape[1] < grid * grid
        or not isinstance(patches, nn.Conv2d)
    ):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(f"moco_v3 needs a transformer with a position and a projection for each patch, not {name}")
    width = positions.shape[2]
    tokens = positions.shape[1] - grid * grid  # class and register tokens come first and have no position
    table = torch.cat([torch.zeros(tokens, width), sincos_2d(width, grid, grid)]).to(positions)
    if not trained:
        xavier_(model)
        for name, layer in model.named_modules():
            if name.endswith("qkv") and isinstance(layer, nn.Linear):
                bound = math.sqrt(6 / (layer.out_features // 3 + layer.in_features))
                nn.init.uniform_(layer.weight, -bound, bound)
        positions.copy_(table)
        if isinstance(getattr(model, "cls_token", None), nn.Parameter):
            nn.init.normal_(cast(nn.Parameter, model.cls_token), std=1e-6)
    positions.requires_grad_(not torch.equal(positions[0], table))
    patches.requires_grad_(not frozen_patches)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with a transformer of one block: two take twice as long."""
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=4, embed_dim=64, depth=1, num_heads=2)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"moco_v3": on_the_world(moco_v3(at, projection=64, hidden=256), peak=2e-3)}
