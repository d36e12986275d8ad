r"""The recipe of BYOL (Grill et al., 2020, arXiv 2006.07733). The method: ``selfsight.methods.byol``.

An online network predicts a slow target's view of the same image, without negatives:
:math:`L = \lVert \hat p_1 - \mathrm{sg}(\hat z'_2) \rVert^2 + \lVert \hat p_2 - \mathrm{sg}(\hat z'_1) \rVert^2`.

**Large images**: the paper's (74.3 % linear on ImageNet with ResNet-50 after 1000 epochs): LARS, batch 4096, heads of
4096 and 256. Base learning rate, decay and target momentum depend on the length of the training; the official code has
them for 40, 100, 300 and 1000 epochs, and the row of the next longer training is taken. The paper's run at batch 512
(73.7 % after 1000 epochs) is ``--batch-size 512 --lr 0.8 --momentum 0.9995``, the README's for one GPU (Imagenette,
92.3 % online) ``--backbone resnet18 --image-size 128 --batch-size 256 --lr 2 --weight-decay 1e-6``.

**Small images** (up to 96 px): solo-learn's CIFAR-10 settings (92.6 % linear with ResNet-18, the best published column
of the sheet, and the one that keeps the paper's optimiser and heads): batch 256, 1000 epochs, decay 1e-5, target
momentum 0.99 to 1, its own LARS (η 0.02, clipped), no blur.

**Differences**: solo-learn's heads have a bias in the last layer; here they are the official code's, without, and start
as it does, from fan-in normals. A ResNet begins with a scale of zero in each block's last norm, as the code does today;
the paper's began with one.
"""

from dataclasses import replace
from functools import partial

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.byol import BYOL
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, cosine, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "byol": {
        "family": "contrastive",
        "title": "BYOL",
        "year": 2020,
        "arxiv": "2006.07733",
        "fact": "Predicts a slowly moving copy's view of the same image, without negatives.",
        "encoder": "resnet50",
    }
}

_BY_EPOCHS = {40: (0.45, 1e-6, 0.97), 100: (0.45, 1e-6, 0.99), 300: (0.3, 1e-6, 0.99), 1000: (0.2, 1.5e-6, 0.996)}
"""Base learning rate, weight decay and the target's momentum by epochs (deepmind-research ``byol/configs``)."""


def byol(
    at: Setting,
    *,
    momentum: float | None = None,
    projection: int = 256,
    hidden: int = 4096,
    symmetric_views: bool = False,
) -> Recipe[TwoViews]:
    """BYOL: predict a slowly moving copy's view of the same image.

    Parameters
    ----------
    at
        What the run knows.
    momentum
        The target's momentum at the start; it rises to 1 on a cosine. Default: 0.996 for 1000 epochs (0.99 for 100 or
        300, 0.97 for 40), for small images 0.99.
    projection
        Width of projection and prediction.
    hidden
        Width of the hidden layer in both heads.
    symmetric_views
        Blur every other time and solarise one time in five in both views alike (the paper's ablation: no worse). Small
        images are not blurred.
    """
    positive(projection=projection, hidden=hidden)
    epochs = at.epochs or 1000
    batch = at.batch_size or (256 if at.small else 4096)
    row = next((row for longest, row in _BY_EPOCHS.items() if epochs <= longest), _BY_EPOCHS[1000])
    base, decay, m = (1.0, 1e-5, 0.99) if at.small else row
    head = partial(heads.mlp, out_bias=False, init=heads.fan_in_normal_)
    method = BYOL(
        at.encoder,
        head(at.encoder.width, hidden, projection),
        head(projection, hidden, projection),
        momentum=cosine(m if momentum is None else momentum, 1.0),
    )
    set_scope_(method, "all")
    peak = base * batch / 256
    if at.small:
        build = partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True)
        lr = warmup_cosine(peak, warmup_epochs=10, start=3e-5)
        first, second = (augment.small(at.image_size, kind="asymmetric", view=view) for view in (1, 2))
    else:
        build = partial(LARS, momentum=0.9, eta=1e-3, variant="byol")
        lr = warmup_cosine(peak, warmup_epochs=10)
        first, second = (augment.byol(at.image_size, view=view) for view in (1, 2))
    if symmetric_views:
        first = second = replace(second, blur=second.blur and replace(second.blur, p=0.5))
    return Recipe(
        method=method,
        views=two_views(first, second),
        optimisers={"main": OptimiserSpec(build=build, lr=lr, weight_decay=constant(decay), groups=skip_vectors)},
        epochs=epochs,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"byol": on_the_world(byol(at, projection=64, hidden=256))}
