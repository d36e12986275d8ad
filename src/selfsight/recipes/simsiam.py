r"""The recipe of SimSiam (Chen and He, 2021, arXiv 2011.10566). The method: ``selfsight.methods.simsiam``.

Predict one view's projection from the other's, with the gradient stopped at what is predicted:
:math:`L = -\frac12 \cos(p_1, \mathrm{sg}(z_2)) - \frac12 \cos(p_2, \mathrm{sg}(z_1))`.

**Large images**: the official README's command (68.1 % linear on ImageNet with ResNet-50 after 100 epochs): SGD, 0.05
x batch / 256 on a cosine without warm-up, decay 1e-4 on every parameter, batch 512, a projector of three layers of
2048, a predictor with a bottleneck of 512 whose learning rate stays at its peak (``--fix-pred-lr``). From batch 1024 on
the paper warms up for 10 epochs.

**Small images** (up to 96 px): the paper's appendix D (91.8 % linear on CIFAR-10 with ResNet-18): 0.03 x batch / 256,
decay 5e-4, batch 512, 800 epochs, a projector of two layers, no blur. Of the predictor's rate it says nothing; it stays
at its peak here too, as it does in solo-learn.

**Differences**: the cosine moves with every update, the official code's with every epoch. Heads begin as PyTorch's
linear layers do: the paper found a fixed deviation of 0.01 not to converge. The code's hidden layers are as wide as the
encoder's output, the paper's 2048, which is the same for a ResNet-50. Small images are normalised by CIFAR-10's
numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.methods.simsiam import SimSiam
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Group, OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, cosine, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "simsiam": {
        "family": "contrastive",
        "title": "SimSiam",
        "year": 2021,
        "arxiv": "2011.10566",
        "fact": "Predicts one view from the other: no negatives, no momentum, no large batch.",
        "encoder": "resnet50",
    }
}


def fixed(part: str) -> Callable[[str, nn.Parameter], Group]:
    """Everything decays and adapts, and the parameters of ``part`` learn at the schedule's peak for all time."""

    def groups(name: str, parameter: nn.Parameter) -> Group:
        return Group(fixed_lr=name.startswith(f"{part}."))

    return groups


def simsiam(
    at: Setting,
    *,
    projection: int = 2048,
    hidden: int = 2048,
    bottleneck: int | None = None,
    fixed_predictor_lr: bool = True,
) -> Recipe[TwoViews]:
    """SimSiam: predict one view from the other.

    Parameters
    ----------
    at
        What the run knows.
    projection
        Width of projection and prediction: 256, 512, 1024 and 2048 gave 65.3, 67.2, 67.5 and 68.1 % on ImageNet.
    hidden
        Width of the projector's hidden layers.
    bottleneck
        Width of the predictor's hidden layer; one as wide as the projection is unstable. Default: a quarter of it.
    fixed_predictor_lr
        Keep the predictor's learning rate at its peak: 68.1 % on ImageNet, against 67.7 % with the cosine.
    """
    positive(projection=projection, hidden=hidden, bottleneck=bottleneck)
    batch = at.batch_size or 512
    before = (hidden,) if at.small else (hidden, hidden)
    method = SimSiam(
        at.encoder,
        heads.mlp(at.encoder.width, *before, projection, bias=False, out_bias=False, out_norm="plain"),
        heads.mlp(projection, bottleneck or max(projection // 4, 1), projection, bias=False),
    )
    set_scope_(method, "all")
    peak = (0.03 if at.small else 0.05) * batch / 256
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=warmup_cosine(peak, warmup_epochs=10) if batch >= 1024 else cosine(peak, 0.0),
        weight_decay=constant(5e-4 if at.small else 1e-4),
        groups=fixed("predictor") if fixed_predictor_lr else decay_all,
    )
    view = augment.moco_v2(at.image_size, blur=not at.small)
    return Recipe(
        method=method,
        views=two_views(replace(view, normalise=augment.CIFAR10) if at.small else view),
        optimisers={"main": main},
        epochs=at.epochs or (800 if at.small else 100),
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"simsiam": on_the_world(simsiam(at, projection=256, hidden=256), peak=2e-3)}
