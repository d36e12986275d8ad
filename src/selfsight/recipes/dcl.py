r"""The recipe of decoupled contrastive learning (Yeh et al., 2022, arXiv 2110.06848), not to be taken for the debiased
loss, which is called DCL too. The method, with another loss: ``selfsight.methods.simclr``.

In InfoNCE the positive stands in the denominator as well, which scales every gradient by :math:`1 - p^+` and makes
small batches learn slowly. Without it: :math:`L = -w s^+ + \log \sum_j e^{s_j}` over the negatives, with :math:`w = 1`
or, with ``--weighted`` (DCLW), :math:`w = 2 - e^{c / \sigma} / \overline{e^{c / \sigma}}` of the views' cosine
:math:`c`: views that lie far apart count for more.

**Large images**: batch 256 and 200 epochs, for which the paper states 68.2 % linear on ImageNet with ResNet-50, 6.4
points above SimCLR. There is no official code. The rest is SimCLR's, with its rule for small batches, 0.075 x √batch,
and τ 0.1.

**Small images** (up to 96 px): the public code's CIFAR-10 runs (linear after 100 epochs at batch 128: NT-Xent 83.1 %,
DCL 85.6 %, DCLW 83.5 %): Adam at a constant 1e-3, decay 1e-6, batch 128, 100 epochs, τ 0.1, σ 0.5, half the jitter of
SimCLR, no blur.

**Differences** between the paper, the public code (raminnakhli/Decoupled-Contrastive-Learning, 0b9b76d) and this file:
the code adds both directions, here it is their mean. Its weights pass gradient, which pushes views apart once their
cosine is above σ; weights that only weigh get none here (nor in lightly). Their mean is taken over all processes. The
code's README names a ResNet-18, its program builds a ResNet-50.
"""

from dataclasses import replace
from functools import partial

from torch.optim import Adam

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.losses.decoupled import decoupled
from selfsight.parts import heads
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.recipes.simclr import head, lars, peak_rate, with_loss
from selfsight.schedules import constant
from selfsight.views import augment

CARDS = {
    "dcl": {
        "family": "contrastive",
        "title": "Decoupled contrastive learning",
        "year": 2021,
        "arxiv": "2110.06848",
        "fact": "SimCLR without the positive in the denominator: strong at small batches.",
        "encoder": "resnet50",
    }
}


def dcl(
    at: Setting, *, temperature: float = 0.1, weighted: bool = False, sigma: float = 0.5, projection: int = 128
) -> Recipe[TwoViews]:
    """Decoupled contrastive learning: SimCLR without the positive in the denominator.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    weighted
        Weigh positives that lie far apart more (DCLW).
    sigma
        Of these weights: the smaller, the more they differ.
    projection
        Width of the projection.
    """
    positive(temperature=temperature, sigma=sigma, projection=projection)
    loss = partial(decoupled, temperature=temperature, sigma=sigma if weighted else None)
    batch, w = at.batch_size or (128 if at.small else 256), at.encoder.width
    wired = partial(with_loss, at, loss, batch=batch)
    if not at.small:
        main, view = lars(peak_rate(0.3, batch, "sqrt"), decay=1e-6), augment.simclr(at.image_size)
        return wired(projector=head(w, projection), view=view, main=main, epochs=200)
    adam = OptimiserSpec(build=Adam, lr=constant(1e-3), weight_decay=constant(1e-6), groups=decay_all)
    view = replace(augment.debiased(at.image_size), blur=None)
    return wired(projector=heads.mlp(w, 512, projection, bias=False), view=view, main=adam, epochs=100, apart=True)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with weights."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"dcl": on_the_world(dcl(at, weighted=True))}
