r"""The recipe of InvaSpread (Ye et al., 2019, arXiv 1904.03436). The method: ``selfsight.methods.simclr``.

Ye, Zhang, Yuen, Chang, "Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", CVPR 2019. Two
views of an image are each other's instance, and no other embedding of the batch is; no memory is kept. The method is
SimCLR's with another loss and head, a year before it. With
:math:`P_{ij} = S_{ij} / D_i`, :math:`S_{ij} = e^{\hat z_i^\top \hat z_j / \tau}`,
:math:`D_i = \sum_{k \ne i} S_{ik}` and :math:`\pi(i)` the other view of :math:`i`,

.. math:: L = -\frac1{2B} \sum_{i=1}^{2B} \Big[\log P_{i\pi(i)} + m \sum_{j \ne i, \pi(i)} \log(1 - P_{ij})\Big] .

SimCLR's loss is its first term alone; the second one also pushes each negative down by itself.

**Small images** (up to 96 px): the official code for CIFAR-10 and STL-10 with ResNet-18: SGD, 0.03 x batch / 128, decay
5e-4, batch 128, 301 epochs, a tenth of the rate from epoch 120, a twentieth from 160, a hundredth from 200, τ 0.1, a
linear head of 128. For both, each colour is divided by the mean deviation within an image of CIFAR-10.

**Large images**: none are published that begin from scratch (the paper's begin from an ImageNet classifier), so these
settings are taken for them too, with ImageNet's normalisation.

**Differences** between the paper, the official code (mangye16/Unsupervised_Embedding_Learning, 29de398) and this
recipe, which follows the code: the paper has each probability over the images of one view, the code over both views
without the embedding itself. The code lets the gradient reach one side of each inner product only (``--detach-keys``),
which the paper's formula does not say. Its logarithm of :math:`1 - P` can be infinite, here it is exact. The rates
scale with the batch. The variant for fine-grained birds that takes a neighbour as the second view is not built. Batch
norm sees the whole batch, in the code what one GPU has of it. A ResNet begins with a scale of zero in each block's last
norm, the code's with one.
"""

from dataclasses import replace
from functools import partial

from torch.optim import SGD

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.losses.spreading import invariance_and_spreading
from selfsight.method import Clock
from selfsight.methods.simclr import SimCLR
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import Curve, constant
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "invaspread": {
        "family": "contrastive",
        "title": "InvaSpread",
        "year": 2019,
        "arxiv": "1904.03436",
        "fact": "Views of an image agree and images spread out, each negative by itself, within a batch.",
        "encoder": "resnet50",
    }
}

STAIRS = ((120 / 301, 0.1), (160 / 301, 0.05), (200 / 301, 0.01))
"""From which share of the training on the rate has which part of its peak (``demo_seen.py``)."""


def invaspread(
    at: Setting,
    *,
    temperature: float = 0.1,
    negatives_weight: float = 1.0,
    detach_keys: bool = True,
    projection: int = 128,
) -> Recipe[TwoViews]:
    """InvaSpread: views of an image agree and images spread out, within a batch.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    negatives_weight
        Weight of the negatives, in the probabilities' denominators too; at least 1.
    detach_keys
        Let the gradient reach one side of each inner product only, as the official code does.
    projection
        Width of the embedding.
    """
    positive(temperature=temperature, projection=projection)
    if negatives_weight < 1:
        raise ValueError(f"--negatives-weight must be at least 1, not {negatives_weight:g}")
    batch = at.batch_size or 128
    loss = partial(invariance_and_spreading, temperature=temperature, weight=negatives_weight, detach_keys=detach_keys)
    method = SimCLR(at.encoder, heads.mlp(at.encoder.width, projection), loss=loss)
    set_scope_(method, "all")
    view = replace(augment.moco_v1(at.image_size), order=("jitter", "grey", "blur", "solarise"))
    if at.small:
        view = replace(view, normalise=augment.CIFAR10_BY_IMAGE)
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=_stairs(0.03 * batch / 128),
        weight_decay=constant(5e-4),
        groups=decay_all,
    )
    return Recipe(
        method=method,
        views=two_views(view),
        optimisers={"main": main},
        epochs=at.epochs or 301,
        batch_size=batch,
    )


def _stairs(peak: float) -> Curve:
    """The paper's steps, whose factors differ."""

    def at(clock: Clock) -> float:
        return peak * [1.0, *(part for share, part in STAIRS if clock.progress >= share)][-1]

    when = ", ".join(f"x {part:g} from {share:.0%}" for share, part in STAIRS)
    return Curve(at, peak, lambda scale: f"{scale * peak:g}, {when}")


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=16)
    at = Setting(encoder=encoder, image_size=16, samples=2048, epochs=5, batch_size=32)
    return {"invaspread": on_the_world(invaspread(at, projection=64))}
