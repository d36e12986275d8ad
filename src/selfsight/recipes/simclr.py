r"""The recipe of SimCLR (Chen et al., 2020, arXiv 2002.05709). The method: ``selfsight.methods.simclr``.

Two views of an image should agree behind a small head, against all other images of the batch:
:math:`L = \frac1{2B} \sum_i -\log \big(e^{s_{ij(i)} / \tau} / \sum_{k \ne i} e^{s_{ik} / \tau}\big)`.

**Large images**: the paper's headline run (69.3 % linear on ImageNet with ResNet-50): LARS, 0.3 x batch / 256, decay
1e-6, batch 4096, 1000 epochs, τ 0.1, a head of two layers. The repository's defaults are version 2's: decay 1e-4 and
three layers.

**Small images** (up to 96 px): the CIFAR-10 command of the official repository's README (about 91 % linear with
ResNet-18): 1.0 x batch / 256, decay 1e-4, batch 512, 1000 epochs, τ 0.5, half the jitter, no blur, a head of three
layers. It is the one official column that names a ResNet-18. ``--cifar paper`` takes the paper's appendix B.9 instead
(94.0 % with ``--backbone resnet50``): batch 1024, the best there, decay 1e-6 and a head of two layers; its sweep's base
rates are 0.5, 1.0 and 1.5 without saying which was best, and the middle one is taken.

``--scaling sqrt`` is the paper's other rule (appendix B.1): 0.075 x √batch, the same at 4096, better for small batches
and short trainings.

**Differences**: the official LARS has its learning rate inside the momentum (``variant="simclr"``), as here. The loss
is half the code's: LARS rescales that away but for the decay, which so weighs twice as much beside the gradient, and
but for the vectors, which it does not adapt.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.losses.contrastive import PairLoss, nt_xent
from selfsight.methods.simclr import SimCLR
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import Curve, constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views
from selfsight.views.view import View

Scaling = Literal["linear", "sqrt"]

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
    layers: int | None = None,
    smallest_crop: float = 0.08,
    strength: float | None = None,
    scaling: Scaling = "linear",
    cifar: Literal["readme", "paper"] = "readme",
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
    layers
        Of the head. Default: 2, for small images 3 (2 with ``cifar`` paper).
    smallest_crop
        The least share of an image's area that a view shows.
    strength
        Of the colour jitter, 0 for none. Default: 1, for small images 0.5.
    scaling
        How the learning rate grows with the batch: linear, or sqrt, which is the same at 4096 and more below.
    cifar
        Whose settings small images get: the official repository's readme, or the paper's appendix B.9.
    """
    if cifar not in ("readme", "paper"):
        raise ValueError(f"--cifar is '{cifar}'; choose readme or paper")
    readme = at.small and cifar == "readme"
    batch = at.batch_size or ((512 if readme else 1024) if at.small else 4096)
    positive(temperature=temperature, projection=projection, smallest_crop=smallest_crop, layers=layers)
    tau = temperature or (0.5 if at.small else 0.1)
    usual = 0.5 if at.small else 1.0
    view = augment.simclr(at.image_size, strength=usual if strength is None else strength, blur=not at.small)
    return with_loss(
        at,
        partial(nt_xent, temperature=tau),
        projector=head(at.encoder.width, projection, layers=layers or (3 if readme else 2)),
        view=replace(view, scale=(smallest_crop, 1.0)),
        main=lars(peak_rate(1.0 if at.small else 0.3, batch, scaling), decay=1e-4 if readme else 1e-6),
        epochs=1000,
        batch=batch,
    )


def head(w: int, projection: int, *, layers: int = 2) -> nn.Sequential:
    """SimCLR's projector behind features of width ``w``, as in the code: no bias, and a scale alone at the end."""
    init = partial(nn.init.normal_, std=0.01)  # model_util.py
    return heads.mlp(*[w] * layers, projection, bias=False, out_bias=False, out_norm="scale", init=init)


def peak_rate(base: float, batch: int, scaling: Scaling = "linear") -> float:
    """The peak learning rate of a batch, ``base`` being linear scaling's for 256; both rules agree at 4096.

    >>> peak_rate(0.3, 4096), peak_rate(0.3, 4096, "sqrt"), peak_rate(0.3, 256), peak_rate(0.3, 256, "sqrt")
    (4.8, 4.8, 0.3, 1.2)
    """
    rates = {"linear": base * batch / 256, "sqrt": base / 4 * batch**0.5}
    if scaling not in rates:
        raise ValueError(f"--scaling is '{scaling}'; choose linear or sqrt")
    return rates[scaling]


def lars(peak: float, *, decay: float, end: float = 0.0) -> OptimiserSpec:
    """SimCLR's optimiser: its LARS, ten epochs of warm-up, a cosine to ``end``; vectors neither decay nor adapt."""
    return OptimiserSpec(
        build=partial(LARS, momentum=0.9, eta=1e-3, variant="simclr"),
        lr=warmup_cosine(peak, warmup_epochs=10, end=end),
        weight_decay=constant(decay),
        groups=skip_vectors,
    )


def with_loss(
    at: Setting,
    loss: PairLoss,
    *,
    projector: nn.Module,
    view: View,
    main: OptimiserSpec,
    epochs: int,
    batch: int,
    log: Mapping[str, PairLoss] | None = None,
    scheduled: Mapping[str, Curve] | None = None,
    apart: bool = False,
) -> Recipe[TwoViews]:
    """SimCLR with any loss: what the recipes of this class share. ``epochs`` are the paper's."""
    method = SimCLR(at.encoder, projector, loss=loss, log=log, scheduled=scheduled, apart=apart)
    set_scope_(method, "all")  # within one process's statistics the two views would recognise each other
    return Recipe(
        method=method,
        views=two_views(view),
        optimisers={"main": main},
        epochs=at.epochs or epochs,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"simclr": on_the_world(simclr(at))}
