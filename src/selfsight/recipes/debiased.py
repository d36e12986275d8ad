r"""The recipes of the debiased contrastive loss (Chuang et al., 2020, arXiv 2007.00224) and of hard negatives (Robinson
et al., 2021, arXiv 2010.04592). The method, with another loss: ``selfsight.methods.simclr``.

Negatives that show the anchor's own class are false. A share :math:`\tau^+` of them is, so what they add to the sum is
taken off; and the negatives that are hard to tell from the anchor weigh more, by :math:`\beta`:
:math:`L = -\log \big(e^{s^+} / (e^{s^+} + N g)\big)`,
:math:`N g = \max\{(\sum_j w_j e^{s_j} - \tau^+ N e^{s^+}) / (1 - \tau^+), N e^{-1/\tau}\}` with
:math:`w_j = e^{\beta s_j} / \frac1N \sum_k e^{\beta s_k}`. At :math:`\beta = 0` that is the debiased loss, at
:math:`\tau^+ = 0` besides it is NT-Xent.

**Small images** (up to 96 px): the official codes' for STL-10 at 32 px and CIFAR-10 with ResNet-50 (linear on STL-10:
80.2 % with NT-Xent, 84.3 % debiased, 87.4 % with hard negatives at β 1, which falls to 83.1 % at 6): Adam at a constant
1e-3, decay 1e-6, batch 256, τ 0.5, τ⁺ 0.1, 500 epochs, with hard negatives 400.

**Large images**: neither paper has settings for them. They are SimCLR's, with these papers' τ of 0.5 (at 0.1 the one
positive stands for far too much) and, after their rule that τ⁺ is the share of an image's own class, 1/1000 for
ImageNet's classes.

What the sheets advise to watch is written down beside the loss: the share of anchors whose estimate lies below the
floor, which rises where τ⁺ is too large, and the effective number of negatives.

**Differences** between papers, official codes (chingyaoc/DCL 7d6345f, joshr17/HCL 7b4647f) and this file: the papers
allow several positives for the estimate, both codes use the one that there is, as here. The paper puts features on a
sphere of radius 1/τ yet has the floor at exp(-1/τ); as in the codes scores are cosines over τ. N counts the negatives
of all processes. ``--anneal`` lowers β to 0 in nine levels of equal length; the code keeps the first of its nine for
two parts and comes to 0 for the last few epochs only. A ResNet begins with a scale of zero in each block's last norm,
the codes' with one.
"""

from collections.abc import Mapping
from functools import partial

from torch.optim import Adam

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.losses import debiased as losses
from selfsight.losses.contrastive import PairLoss
from selfsight.method import Clock
from selfsight.parts import heads
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.recipes.simclr import head, lars, peak_rate, with_loss
from selfsight.schedules import Curve, constant
from selfsight.views import augment

CARDS = {
    "debiased": {
        "family": "contrastive",
        "title": "Debiased contrastive loss",
        "year": 2020,
        "arxiv": "2007.00224",
        "fact": "SimCLR that takes off what negatives of the anchor's own class add.",
        "encoder": "resnet50",
        "small_encoder": "resnet50",
    },
    "hard_negatives": {
        "family": "contrastive",
        "title": "Hard negative sampling",
        "year": 2020,
        "arxiv": "2010.04592",
        "fact": "SimCLR whose negatives weigh more the nearer they are to the anchor.",
        "encoder": "resnet50",
        "small_encoder": "resnet50",
    },
}


def debiased(
    at: Setting, *, temperature: float = 0.5, tau_plus: float | None = None, projection: int = 128
) -> Recipe[TwoViews]:
    """The debiased contrastive loss: take off what negatives of the anchor's own class add.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    tau_plus
        The probability that a random image shares the anchor's class: 1 / classes where they are balanced. Default:
        0.001, for small images 0.1.
    projection
        Width of the projection.
    """
    known = {"temperature": temperature, "tau_plus": _prior(at, tau_plus)}
    log = {"share_at_the_floor": partial(losses.share_at_the_floor, **known)}
    return _recipe(at, partial(losses.debiased, **known), temperature, projection, epochs=500, log=log)


def hard_negatives(
    at: Setting,
    *,
    temperature: float = 0.5,
    tau_plus: float | None = None,
    beta: float = 1.0,
    anneal: bool = False,
    projection: int = 128,
) -> Recipe[TwoViews]:
    """Hard negative sampling: negatives weigh more the nearer they are to the anchor.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    tau_plus
        The probability that a random image shares the anchor's class: 1 / classes where they are balanced. Default:
        0.001, for small images 0.1.
    beta
        How much harder negatives weigh more, 0 for all alike. Best between 1 and 2 on STL-10.
    anneal
        Lower beta to 0 over the training, in nine levels.
    projection
        Width of the projection.
    """
    if beta < 0:
        raise ValueError(f"--beta must be at least 0, not {beta:g}")
    known = {"temperature": temperature, "tau_plus": _prior(at, tau_plus), "beta": beta}
    log = {
        "share_at_the_floor": partial(losses.share_at_the_floor, **known),
        "effective_negatives": partial(losses.effective_negatives, temperature=temperature, beta=beta),
    }
    return _recipe(
        at,
        partial(losses.hard_negatives, **known),
        temperature,
        projection,
        epochs=400,
        log=log,
        scheduled={"beta": annealed(beta)} if anneal else None,
    )


def annealed(beta: float) -> Curve:
    """Nine levels of equal length, from ``beta`` down to 0."""
    levels = 9

    def value(clock: Clock) -> float:
        return beta * (1 - min(int(levels * clock.progress), levels - 1) / (levels - 1))

    return Curve(value, beta, lambda scale: f"{scale * beta:g} -> 0 in {levels} levels")


def _prior(at: Setting, tau_plus: float | None) -> float:
    tau_plus = (0.1 if at.small else 0.001) if tau_plus is None else tau_plus
    if not 0 <= tau_plus < 1:
        raise ValueError(f"--tau-plus must be at least 0 and below 1, not {tau_plus:g}")
    return tau_plus


def _recipe(
    at: Setting,
    loss: PairLoss,
    temperature: float,
    projection: int,
    *,
    epochs: int,
    log: Mapping[str, PairLoss],
    scheduled: Mapping[str, Curve] | None = None,
) -> Recipe[TwoViews]:
    """What both papers share; large images get SimCLR's settings."""
    positive(temperature=temperature, projection=projection)
    batch, w = at.batch_size or (256 if at.small else 4096), at.encoder.width
    wired = partial(with_loss, at, loss, batch=batch, log=log, scheduled=scheduled)
    if not at.small:
        main, view = lars(peak_rate(0.3, batch), decay=1e-6), augment.simclr(at.image_size)
        return wired(projector=head(w, projection), view=view, main=main, epochs=1000)
    adam = OptimiserSpec(build=Adam, lr=constant(1e-3), weight_decay=constant(1e-6), groups=decay_all)
    projector = heads.mlp(w, 512, projection, bias=False)
    return wired(projector=projector, view=augment.debiased(at.image_size), main=adam, epochs=epochs, apart=True)


def tiny() -> dict[str, Recipe]:
    """The recipes at a size that a test can train."""

    def at() -> Setting:
        encoder = build_encoder("tiny_cnn", image_size=32)
        return Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)

    return {"debiased": on_the_world(debiased(at())), "hard_negatives": on_the_world(hard_negatives(at(), anneal=True))}
