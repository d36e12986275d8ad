r"""The recipe of Barlow Twins (Zbontar et al., 2021, arXiv 2103.03230). The method: ``selfsight.methods.barlow_twins``.

Two views agree in every feature, and no two features say the same:
:math:`L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2`.

**Large images**: the official code's (73.5 % linear on ImageNet with ResNet-50): LARS, batch 2048, 1000 epochs, three
layers of 8192, λ 0.0051, decay 1e-6 (the paper's text says 0.005 and 1.5e-6), 0.2 x batch / 256 for weights and 0.0048
x batch / 256 for biases and norms. These were tuned on 16 processes with a gradient that is 1/16 of the true one, so
the loss is scaled by 1/16 here.

**Small images** (up to 96 px): solo-learn's CIFAR-10 settings (92.1 % linear with ResNet-18, against 84-86 % kNN of the
sheet's other column): batch 256, 1000 epochs, three layers of 2048, one learning rate of 0.3 x batch / 256, decay 1e-4,
the loss scaled by 0.1, its own LARS (η 0.02, clipped), no blur.

**Differences**: solo-learn averages the correlations of each process's own batch norm; here the batch is one.
"""

from functools import partial

from torch import nn

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.barlow_twins import BarlowTwins
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Group, OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "barlow_twins": {
        "family": "contrastive",
        "title": "Barlow Twins",
        "year": 2021,
        "arxiv": "2103.03230",
        "fact": "Two views agree in every feature, and no two features say the same.",
        "encoder": "resnet50",
    }
}


def slow_vectors(name: str, parameter: nn.Parameter) -> Group:
    """Biases and norms neither decay nor adapt, and learn at their own rate: 0.0048 where weights have 0.2."""
    if parameter.ndim > 1:
        return Group()
    return Group(decay=False, adapt=False, lr_scale=0.0048 / 0.2)


def barlow_twins(
    at: Setting, *, weight: float = 0.0051, projection: int | None = None, scale: float | None = None
) -> Recipe[TwoViews]:
    """Barlow Twins: two views agree in every feature, and no two features say the same.

    Parameters
    ----------
    at
        What the run knows.
    weight
        The weight λ of the correlations between different features.
    projection
        Width of the three layers of the projector. Default: 8192, for small images 2048.
    scale
        A factor of the loss, on which the biases' and norms' learning rate depends. Default: 1/16, for the 16 processes
        of the official README (the paper had 32), for small images 0.1.
    """
    batch = at.batch_size or (256 if at.small else 2048)
    positive(weight=weight, projection=projection, scale=scale)
    d = projection or (2048 if at.small else 8192)
    method = BarlowTwins(
        at.encoder,
        heads.mlp(at.encoder.width, d, d, d, bias=False, out_bias=False),
        width=d,
        weight=weight,
        scale=scale or (0.1 if at.small else 1 / 16),
    )
    set_scope_(method, "all")
    peak = (0.3 if at.small else 0.2) * batch / 256
    if at.small:
        main = OptimiserSpec(
            build=partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True),
            lr=warmup_cosine(peak, warmup_epochs=10, start=3e-5),
            weight_decay=constant(1e-4),
            groups=skip_vectors,
        )
        first, second = (augment.small(at.image_size, kind="asymmetric", view=view) for view in (1, 2))
    else:
        main = OptimiserSpec(
            build=partial(LARS, momentum=0.9, eta=1e-3, variant="byol"),
            lr=warmup_cosine(peak, warmup_epochs=10, end=peak / 1000),
            weight_decay=constant(1e-6),
            groups=slow_vectors,
        )
        first, second = (augment.barlow_twins(at.image_size, view=view) for view in (1, 2))
    return Recipe(
        method=method,
        views=two_views(first, second),
        optimisers={"main": main},
        epochs=at.epochs or 1000,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"barlow_twins": on_the_world(barlow_twins(at, projection=256, weight=0.02))}
