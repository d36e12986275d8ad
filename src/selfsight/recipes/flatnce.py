r"""The recipe of FlatNCE (Chen et al., 2021, arXiv 2107.01152). The method, with another loss:
``selfsight.methods.simclr``.

InfoNCE's gradient has the factor :math:`1 - p^+`, which vanishes where a small batch makes the positive easy to find.
FlatNCE is without it: :math:`L = \exp(v - \mathrm{sg}(v))` with :math:`v = \log \sum_j e^{(s_j - s^+) / \tau}`. Its
value is always 1; InfoNCE's is written down beside it, as ``info_nce``.

**Large images**: the official code's defaults: LARS, 0.3 x batch / 256, decay 1e-6, batch 512, 100 epochs, ten of them
warm-up, a cosine to 1e-6, τ 0.1, a head of two layers with biases and no norm.

**Small images** (up to 96 px): the same defaults, which the code has for CIFAR-10 too, with half the jitter and no
blur. ``--scaling sqrt`` is its README's other column, 0.075 x √batch.

The loss's gradient is larger than NT-Xent's by :math:`1 / (1 - p^+)`, which grows as training proceeds. LARS undoes
that for matrices, but not for vectors; under SGD it would be a growing learning rate.

**Differences** between the paper, the official code (Junya-Chen/FlatCLR, fbc42f6) and this file: the code's LARS
accepts a list of exclusions and ignores it, so that biases decay and adapt; here it is SimCLR's, without. The code adds
InfoNCE's value to the loss, without gradient; the loss here is 1. The accuracy that it prints leaves the positive out;
there is none here. A ResNet begins with a scale of zero in each block's last norm, the code's with one.
"""

from dataclasses import replace
from functools import partial

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.losses.contrastive import nt_xent
from selfsight.losses.decoupled import flat_nce
from selfsight.parts import heads
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Recipe, Setting, positive
from selfsight.recipes.simclr import Scaling, lars, peak_rate, with_loss
from selfsight.views import augment
from selfsight.views.view import IMAGENET

CARDS = {
    "flatnce": {
        "family": "contrastive",
        "title": "FlatNCE",
        "year": 2021,
        "arxiv": "2107.01152",
        "fact": "SimCLR whose gradient does not fade when the positive is easy to find.",
        "encoder": "resnet50",
        "small_encoder": "resnet50",
    }
}


def flatnce(
    at: Setting, *, temperature: float = 0.1, projection: int = 128, scaling: Scaling = "linear"
) -> Recipe[TwoViews]:
    """FlatNCE: contrast whose gradient does not fade when the positive is easy to find.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    projection
        Width of the projection.
    scaling
        How the learning rate grows with the batch: linear, or sqrt, which is the same at 4096 and more below.
    """
    positive(temperature=temperature, projection=projection)
    batch, w = at.batch_size or 512, at.encoder.width
    view = augment.simclr(at.image_size, strength=0.5 if at.small else 1.0, blur=not at.small)
    numbers = augment.CIFAR10_BY_IMAGE if at.small else IMAGENET
    return with_loss(
        at,
        partial(flat_nce, temperature=temperature),
        projector=heads.mlp(w, w, projection, norm=False),
        view=replace(view, interpolation="bilinear", normalise=numbers),
        main=lars(peak_rate(0.3, batch, scaling), decay=1e-6, end=1e-6),
        epochs=100,
        batch=batch,
        log={"info_nce": partial(nt_xent, temperature=temperature)},
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"flatnce": on_the_world(flatnce(at))}
