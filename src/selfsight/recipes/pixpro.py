r"""The recipes of PixPro and PixContrast (Xie et al., 2021, arXiv 2011.10043).

The method, one for both: ``selfsight.methods.pixpro``. The pixels of two crops agree where they show the same place of
the image. PixContrast:
:math:`\ell_i = -\log \big(\sum_{A_{ij} = 1} e^{\cos(x_i, x'_j) / \tau} / \sum_j e^{\cos(x_i, x'_j) / \tau}\big)`;
PixPro, whose online pixels are propagated to similar ones: :math:`L = -2\, \overline{\cos(y_i, x'_j)}` over the pairs
with :math:`A_{ij} = 1`, in both directions.

**Large images**: the official script for 400 epochs (60.2 AP on Pascal VOC with ResNet-50; 55.1 % linear on ImageNet,
66.3 % with the paper's instance branch): LARS, 1.0 x batch / 256 after 5 epochs from a hundredth of it, a cosine to
1e-6, decay 1e-5, batch 1024, heads of 4096 and 256, target momentum 0.99 to 1, T 0.7, γ 2, one linear layer as g.
BYOL's pair of views, bilinear. PixContrast keeps all of it, with τ 0.3 (the paper's; it was never released).

**Small images** (up to 96 px): no settings are published. The paper's are kept, with a batch of 256 and solo-learn's
asymmetric views for CIFAR, which are BYOL's without blur. A ResNet's map has 4 x 4 pixels at 32 px.

**Differences**: the paper says that heads are 2048 wide inside, the code and its weights have 4096. The code converts
no norm of a transform of two layers (``--transform-layers 2``); here all norms span all processes. A ViT's class token,
which no loss reads, is not the feature: the mean of the patches is.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from selfsight.batches import LocatedViews
from selfsight.encoders.build import build_encoder
from selfsight.encoders.pooling import pool_patches_
from selfsight.engine.optimisers import LARS
from selfsight.losses.pixels import PixelLoss, pixel_consistency, pixel_contrast
from selfsight.methods.pixpro import Instance, PixPro
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.pixels import PixelPropagation, pixel_mlp
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, cosine, warmup_cosine
from selfsight.views import augment
from selfsight.views.located import located_views
from selfsight.views.view import View

CARDS = {
    "pixpro": {
        "family": "contrastive",
        "title": "PixPro",
        "year": 2021,
        "arxiv": "2011.10043",
        "fact": "Pixels, smoothed over their like, predict the other crop's pixels of the same place.",
        "encoder": "resnet50",
    },
    "pixcontrast": {
        "family": "contrastive",
        "title": "PixContrast",
        "year": 2021,
        "arxiv": "2011.10043",
        "fact": "A pixel picks those of its place out of all pixels of the other crop.",
        "encoder": "resnet50",
    },
}


def pixpro(
    at: Setting,
    *,
    threshold: float = 0.7,
    gamma: float = 2.0,
    transform_layers: int = 1,
    momentum: float = 0.99,
    projection: int = 256,
    hidden: int = 4096,
    instance_weight: float = 0.0,
) -> Recipe[LocatedViews]:
    """PixPro: propagated pixels predict the other crop's pixels of the same place.

    Parameters
    ----------
    at
        What the run knows.
    threshold
        The distance below which pixels match, in diagonals of a pixel's bin.
    gamma
        How sharply pixels choose those that they are mixed with.
    transform_layers
        Layers of the propagation's transform g: 0 for none, 1 or 2.
    momentum
        The target's momentum at the start; it rises to 1 on a cosine.
    projection
        Width of the projection.
    hidden
        Width of the hidden layer in the heads.
    instance_weight
        Weight of BYOL's loss for whole images, 0 for none; 1 in the paper.
    """
    positive(threshold=threshold, projection=projection, hidden=hidden)
    if gamma < 0 or instance_weight < 0:
        raise ValueError(f"--gamma and --instance-weight must be at least 0, not {gamma:g} and {instance_weight:g}")
    head = partial(pixel_mlp, at.encoder.width, hidden, projection)
    predictor = pixel_mlp(projection, hidden, projection)
    method = PixPro(
        at.encoder,
        head(),
        PixelPropagation(_transform(transform_layers, projection), gamma=gamma),
        loss=pixel_consistency,
        momentum=cosine(momentum, 1.0),
        threshold=threshold,
        instance=Instance(head(), predictor, instance_weight) if instance_weight else None,
    )
    return _recipe(at, method)


def pixcontrast(
    at: Setting,
    *,
    temperature: float = 0.3,
    threshold: float = 0.7,
    momentum: float = 0.99,
    projection: int = 256,
    hidden: int = 4096,
) -> Recipe[LocatedViews]:
    """PixContrast: a pixel picks those of its place out of all pixels of the other crop.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    threshold
        The distance below which pixels match, in diagonals of a pixel's bin.
    momentum
        The target's momentum at the start; it rises to 1 on a cosine.
    projection
        Width of the projection.
    hidden
        Width of the hidden layer in the projector.
    """
    positive(temperature=temperature, threshold=threshold, projection=projection, hidden=hidden)
    loss: PixelLoss = partial(pixel_contrast, temperature=temperature)
    method = PixPro(
        at.encoder,
        pixel_mlp(at.encoder.width, hidden, projection),
        nn.Identity(),
        loss=loss,
        momentum=cosine(momentum, 1.0),
        threshold=threshold,
    )
    return _recipe(at, method)


def _transform(layers: int, width: int) -> nn.Module:
    """The propagation's g: ``layers`` 1x1 convolutions."""
    match layers:
        case 0:
            return nn.Identity()
        case 1 | 2:
            return pixel_mlp(*[width] * (layers + 1))
        case _:
            raise ValueError(f"--transform-layers must be 0, 1 or 2, not {layers}")


def _recipe(at: Setting, method: PixPro) -> Recipe[LocatedViews]:
    """What both share: the feature, batch norm over everything, views and optimiser."""
    pool_patches_(at.encoder)
    set_scope_(method, "all")
    batch = at.batch_size or (256 if at.small else 1024)
    peak = 1.0 * batch / 256
    main = OptimiserSpec(
        build=partial(LARS, momentum=0.9, eta=1e-3, variant="byol"),
        lr=warmup_cosine(peak, warmup_epochs=5, start=peak / 100, end=1e-6),
        weight_decay=constant(1e-5),
        groups=skip_vectors,
    )
    return Recipe(
        method=method,
        views=located_views(_view(at, 1), _view(at, 2)),
        optimisers={"main": main},
        epochs=at.epochs or 400,
        batch_size=batch,
    )


def _view(at: Setting, view: Literal[1, 2]) -> View:
    """BYOL's views with Pillow's kind of blur, bilinear; for small images without blur."""
    if at.small:
        return augment.small(at.image_size, kind="asymmetric", view=view)
    return replace(augment.barlow_twins(at.image_size, view=view), interpolation="bilinear")


def tiny() -> dict[str, Recipe]:
    """The recipes at a size that a test can train."""

    def at() -> Setting:
        encoder = build_encoder("tiny_cnn", image_size=32)
        return Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)

    return {
        "pixpro": on_the_world(pixpro(at(), projection=64, hidden=128), peak=2e-3, least=0.3),
        "pixcontrast": on_the_world(pixcontrast(at(), projection=64, hidden=128)),
    }
