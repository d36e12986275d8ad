r"""The recipe of VICReg (Bardes et al., 2022, arXiv 2105.04906). The method: ``selfsight.methods.vicreg``.

Two views agree, every feature varies over the batch, and no two features vary together:
:math:`L = \lambda\, s(Z, Z') + \mu\, \frac12 [v(Z) + v(Z')] + \nu\, [c(Z) + c(Z')]`.

**Large images**: the official README's commands (73.2 % linear on ImageNet with ResNet-50 after 1000 epochs): LARS with
vectors left out, 0.2 x batch / 256 after a warm-up of 10 epochs (0.3 for up to 100 epochs, the README's short run), a
cosine to a thousandth of it, decay 1e-6, batch 2048, an expander of three layers of 8192, weights 25, 25 and 1.

**Small images** (up to 96 px): solo-learn's CIFAR-10 settings (92.1 % linear with ResNet-18, online): its own LARS (η
0.02, clipped), 0.3 x batch / 256, decay 1e-4, batch 256, 1000 epochs, three layers of 2048, crops of (0.2, 1), no blur,
both views solarise one time in ten.

**Differences**: solo-learn adds the two variances where the official code averages them, so that its weight of 25 is 50
here. Its last layer has a bias, of which no term depends; here there is none, as in the official code.
"""

from dataclasses import replace
from functools import partial

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.vicreg import VICReg
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views
from selfsight.views.view import Solarise

CARDS = {
    "vicreg": {
        "family": "contrastive",
        "title": "VICReg",
        "year": 2022,
        "arxiv": "2105.04906",
        "fact": "Two views agree, each feature varies over the batch, and no two vary together.",
        "encoder": "resnet50",
    }
}


def vicreg(
    at: Setting,
    *,
    invariance: float = 25.0,
    variance: float | None = None,
    covariance: float = 1.0,
    projection: int | None = None,
) -> Recipe[TwoViews]:
    """VICReg: two views agree, every feature varies, and no two vary together.

    Parameters
    ----------
    at
        What the run knows.
    invariance
        The weight λ of the squared difference of the views.
    variance
        The weight μ of the two views' mean hinge on their standard deviations. Default: 25, for small images 50.
    covariance
        The weight ν of the squared covariances.
    projection
        Width of the three layers of the expander. Default: 8192, for small images 2048.
    """
    positive(invariance=invariance, variance=variance, covariance=covariance, projection=projection)
    batch = at.batch_size or (256 if at.small else 2048)
    epochs = at.epochs or 1000
    d = projection or (2048 if at.small else 8192)
    method = VICReg(
        at.encoder,
        heads.mlp(at.encoder.width, d, d, d, out_bias=False),
        weights=(invariance, variance or (50.0 if at.small else 25.0), covariance),
    )
    set_scope_(method, "all")
    if at.small:
        main = OptimiserSpec(
            build=partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True),
            lr=warmup_cosine(0.3 * batch / 256, warmup_epochs=10, start=3e-5),
            weight_decay=constant(1e-4),
            groups=skip_vectors,
        )
        view = replace(augment.small(at.image_size, kind="asymmetric"), scale=(0.2, 1.0), solarise=Solarise(0.1))
        views = two_views(view)
    else:
        peak = (0.3 if epochs <= 100 else 0.2) * batch / 256
        main = OptimiserSpec(
            build=partial(LARS, momentum=0.9, eta=1e-3, variant="byol"),
            lr=warmup_cosine(peak, warmup_epochs=10, end=peak / 1000),
            weight_decay=constant(1e-6),
            groups=skip_vectors,
        )
        # the code's views are Barlow Twins' to the letter (augmentations.py)
        views = two_views(*(augment.barlow_twins(at.image_size, view=view) for view in (1, 2)))
    return Recipe(method=method, views=views, optimisers={"main": main}, epochs=epochs, batch_size=batch)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"vicreg": on_the_world(vicreg(at, projection=256))}
