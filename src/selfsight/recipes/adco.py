r"""The recipe of AdCo (Hu et al., 2021, arXiv 2011.08435). The method: ``selfsight.methods.adco``.

A query picks its key out of the batch's keys and a bank of negatives that are trained against it, on one loss:
:math:`\min_\theta \max_W -\log \big(e^{q^\top k / \tau} / (\sum_j e^{q^\top k_j / \tau}
+ \sum_k e^{q^\top \bar n_k / \tau})\big)`.

**Large images**: the official code's (68.6 % linear on ImageNet with ResNet-50 after 200 epochs; 70.6 % with
``--symmetric``, 73.2 % with ``--multi-crop``): SGD, 0.03 x batch / 256 on a cosine to a fiftieth of it, decay 1e-4,
batch 256, 200 epochs, key momentum 0.999, 65536 adversaries, τ 0.12, τ_m 0.02, batch norm over groups of 32. The
adversaries' SGD has the constant rate 3 and the same momentum and decay. With at most 8192 adversaries and a symmetric
loss the README's column: 0.04, τ 0.14, τ_m 0.03. ``--multi-crop`` adds four queries of 192, 160, 128 and 96 px.

**Small images** (up to 96 px): no settings are published, and the code does not support them. The sheet's suggestion is
kept: the surroundings of MoCo's official CIFAR-10 notebook (0.03 x batch / 256, decay 5e-4, batch 512, 200 epochs, key
momentum 0.99, no blur), with 4096 adversaries and the temperatures above.

**Differences**: cosines move with every update, the code's with every epoch. Unless asked for there are never more
adversaries than images. ``--optimiser adamw``, ``--lr`` and ``--weight-decay`` are for the network; the adversaries
have ``--adversary-lr``. A ResNet begins with a scale of zero in each block's last norm, torchvision's with one.
"""

from dataclasses import replace
from functools import partial

from torch.optim import SGD

from selfsight.batches import MultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import TokenEncoder
from selfsight.methods.adco import AdCo
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.moco import norm_group
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, cosine
from selfsight.views import augment
from selfsight.views.pipelines import multi_crop as crops_of
from selfsight.views.view import View

CARDS = {
    "adco": {
        "family": "contrastive",
        "title": "AdCo",
        "year": 2021,
        "arxiv": "2011.08435",
        "fact": "Negatives are trained against the network that must tell them from its keys.",
        "encoder": "resnet50",
    }
}

_SMALL_CROPS = ((192, (0.172, 0.86)), (160, (0.143, 0.715)), (128, (0.114, 0.571)), (96, (0.086, 0.429)))
"""Pixels and share of the area of the queries beside the first, of 224 px (``ops/argparser.py``)."""


def adco(
    at: Setting,
    *,
    temperature: float | None = None,
    adversary_temperature: float | None = None,
    adversary_lr: float = 3.0,
    negatives: int | None = None,
    momentum: float | None = None,
    projection: int = 128,
    symmetric: bool = False,
    multi_crop: bool = False,
) -> Recipe[MultiCrop]:
    """AdCo: pick the key out of negatives that are trained against the query.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The network's temperature. Default: 0.12, or 0.14 for large images, a symmetric loss and at most 8192
        negatives.
    adversary_temperature
        The negatives' temperature. Default: 0.02, or 0.03 likewise.
    adversary_lr
        The negatives' learning rate, the same at all times.
    negatives
        How many there are. Default: 65536, for small images 4096, never more than images.
    momentum
        The key encoder's momentum. Default: 0.999, for small images 0.99.
    projection
        Width of queries and keys.
    symmetric
        Average the loss over both directions.
    multi_crop
        Add four smaller queries.
    """
    positive(
        temperature=temperature,
        adversary_temperature=adversary_temperature,
        adversary_lr=adversary_lr,
        negatives=negatives,
        projection=projection,
    )
    if symmetric and multi_crop:
        raise ValueError("--multi-crop does not go with --symmetric: small crops have no keys; choose one of them")
    batch = at.batch_size or (512 if at.small else 256)
    count = negatives or min(4096 if at.small else 65536, at.samples)
    base, tau, colder = (0.04, 0.14, 0.03) if symmetric and count <= 8192 and not at.small else (0.03, 0.12, 0.02)
    w = at.encoder.width
    method = AdCo(
        at.encoder,
        heads.mlp(w, w, projection, norm=False),
        width=projection,
        size=count,
        temperature=temperature or tau,
        adversary_temperature=adversary_temperature or colder,
        momentum=constant((0.99 if at.small else 0.999) if momentum is None else momentum),
        symmetric=symmetric,
    )
    set_scope_(method, norm_group(batch))
    peak = base * batch / 256
    sgd = partial(SGD, momentum=0.9)
    main = OptimiserSpec(
        build=sgd,
        lr=cosine(peak, peak / 50),
        weight_decay=constant(5e-4 if at.small else 1e-4),
        groups=decay_all,
    )
    adversary = OptimiserSpec(
        build=sgd, lr=constant(adversary_lr), weight_decay=constant(1e-4), groups=decay_all, keep=True
    )
    large, little = _views(at, multi_crop)
    return Recipe(
        method=method,
        views=crops_of(large, little),
        optimisers={"main": main, "adversary": adversary},
        epochs=at.epochs or 200,
        batch_size=batch,
    )


def _views(at: Setting, multi_crop: bool) -> tuple[list[View], list[View]]:
    """MoCo v2's view twice, and the smaller queries'."""
    if at.small:
        view = replace(augment.moco_v2(at.image_size, blur=False, scale=(0.08, 1.0)), normalise=augment.CIFAR10)
    else:
        view = augment.moco_v2(at.image_size)
    unit = at.encoder.patch if isinstance(at.encoder, TokenEncoder) else 8
    little = [
        replace(view, size=max(round(at.image_size * size / 224 / unit), 1) * unit, scale=scale)
        for size, scale in _SMALL_CROPS
    ]
    return [view, view], little if multi_crop else []


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train.

    An adversary's gradient grows with its share of the softmax, so the rate of few is smaller.
    """
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"adco": on_the_world(adco(at, negatives=128, projection=64, adversary_lr=0.01))}
