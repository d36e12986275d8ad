r"""The recipe of SimCLR (Chen et al., 2020, arXiv 2002.05709). The method: ``selfsight.methods.simclr``.

Two views of an image should agree behind a small head, against all other images of the batch:
:math:`L = \frac1{2B} \sum_i -\log \big(e^{s_{ij(i)} / \tau} / \sum_{k \ne i} e^{s_{ik} / \tau}\big)`.

**Large images**: the paper's headline run (69.3 % linear on ImageNet with ResNet-50): LARS, 0.3 x batch / 256, decay
1e-6, batch 4096, 1000 epochs, τ 0.1, a head of two layers. The repository's defaults are version 2's: decay 1e-4 and
three layers.

**Small images** (up to 96 px): the CIFAR-10 command of the official repository's README (about 91 % linear with
ResNet-18): 1.0 x batch / 256, decay 1e-4, batch 512, 1000 epochs, τ 0.5, half the jitter, no blur, a head of three
layers. It is the one official column that names a ResNet-18; the paper's appendix B.9 sweeps a ResNet-50.

**Differences**: the official LARS has its learning rate inside the momentum (``variant="simclr"``), as here. The loss
is half the code's: LARS rescales that away but for the decay, which so weighs twice as much beside the gradient, and
but for the vectors, which it does not adapt.
"""

from dataclasses import replace
from functools import partial

from torch import nn

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.losses.contrastive import nt_xent
from selfsight.methods.simclr import SimCLR
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "simclr": {
        "family": "contrastive",
        "title": "SimCLR",
        "year": 2020,
        "arxiv": "2002.05709",
        "fact": "Two views agree against all other images of a large batch.",
        "encoder": "resnet50",
    }
}


def simclr(
    at: Setting,
    *,
    temperature: float | None = None,
    projection: int = 128,
    smallest_crop: float = 0.08,
    strength: float | None = None,
) -> Recipe[TwoViews]:
    """SimCLR: two views agree against all other images of the batch.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature. Default: 0.1, for small images 0.5.
    projection
        Width of the projection.
    smallest_crop
        The least share of an image's area that a view shows.
    strength
        Of the colour jitter, 0 for none. Default: 1, for small images 0.5.
    """
    batch = at.batch_size or (512 if at.small else 4096)
    positive(temperature=temperature, projection=projection, smallest_crop=smallest_crop)
    tau = temperature or (0.5 if at.small else 0.1)
    usual = 0.5 if at.small else 1.0
    w = at.encoder.width
    projector = heads.mlp(
        *(w, w, w, projection) if at.small else (w, w, projection),
        bias=False,
        out_bias=False,
        out_norm="scale",
        init=partial(nn.init.normal_, std=0.01),  # the code's, model_util.py
    )
    method = SimCLR(at.encoder, projector, loss=partial(nt_xent, temperature=tau))
    set_scope_(method, "all")  # within one process's statistics the two views would recognise each other
    view = augment.simclr(at.image_size, strength=usual if strength is None else strength, blur=not at.small)
    peak = (1.0 if at.small else 0.3) * batch / 256
    main = OptimiserSpec(
        build=partial(LARS, momentum=0.9, eta=1e-3, variant="simclr"),
        lr=warmup_cosine(peak, warmup_epochs=10),
        weight_decay=constant(1e-4 if at.small else 1e-6),
        groups=skip_vectors,
    )
    return Recipe(
        method=method,
        views=two_views(replace(view, scale=(smallest_crop, 1.0))),
        optimisers={"main": main},
        epochs=at.epochs or 1000,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"simclr": on_the_world(simclr(at))}
