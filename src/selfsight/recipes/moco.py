r"""The recipes of MoCo v1 (He et al., 2020, arXiv 1911.05722) and v2 (Chen et al., 2020, arXiv 2003.04297).

The method, one for both: ``selfsight.methods.moco``. A query picks its image's key out of a long queue of keys from a
slowly moving encoder:
:math:`L = -\log \big(e^{q^\top k^+ / \tau} / (e^{q^\top k^+ / \tau} + \sum_j e^{q^\top k_j / \tau})\big)`.

**Large images**: the papers' (60.6 % and 67.7 % linear on ImageNet with ResNet-50): SGD, 0.03 x batch / 256, decay
1e-4, batch 256, 200 epochs, queue 65536, momentum 0.999, batch norm over groups of 32 (8 devices of 32 samples). v1: τ
0.07, a linear head, a tenth of the learning rate at 60 % and at 80 % of the training. v2: τ 0.2, a head of two layers,
blur, a cosine.

**Small images** (up to 96 px). ``moco_v1``: the official CIFAR-10 notebook, which is v1 in head and loss (82.6 % kNN
after 200 epochs with ResNet-18, 85.3 % with a symmetric loss): 0.03 x batch / 256 on a cosine, decay 5e-4, batch 512,
queue 4096, momentum 0.99, τ 0.1, batch norm over an eighth of the batch. ``moco_v2``: solo-learn's "MoCo v2+" (92.9 %
linear): 0.3 x batch / 256 after a warm-up, decay 1e-4, batch 256, 1000 epochs, a queue of 32768 for each view, momentum
0.99 to 0.999, τ 0.2, symmetric, batch norm over the whole batch.

**Differences**: cosines move with every update, the official code's with every epoch. A queue is never longer than the
data, or an image would meet several old keys of its own as negatives, and its default is rounded down to a multiple of
the batch. The notebook's groups of batch norm are every eighth sample, here they are consecutive; keys are shuffled in
both. solo-learn trains v2+ on one process, without shuffling. A ResNet begins with a scale of zero in each block's
last norm, torchvision's with one.
"""

from dataclasses import replace
from functools import partial

from torch.optim import SGD

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.methods.moco import MoCo
from selfsight.parts import heads
from selfsight.parts.batchnorm import Scope, set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import Curve, constant, cosine, steps, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views
from selfsight.views.view import View

CARDS = {
    "moco_v1": {
        "family": "contrastive",
        "title": "MoCo v1",
        "year": 2020,
        "arxiv": "1911.05722",
        "fact": "A query picks its key out of a long queue from a slowly moving encoder.",
        "encoder": "resnet50",
    },
    "moco_v2": {
        "family": "contrastive",
        "title": "MoCo v2",
        "year": 2020,
        "arxiv": "2003.04297",
        "fact": "MoCo with SimCLR's head, blur and a cosine: strong at small batches.",
        "encoder": "resnet50",
    },
}


def moco_v1(
    at: Setting,
    *,
    temperature: float | None = None,
    momentum: float | None = None,
    queue: int | None = None,
    projection: int = 128,
    symmetric: bool = False,
    norm_groups: int | None = None,
) -> Recipe[TwoViews]:
    """MoCo v1: pick the other view's key out of a long queue.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature. Default: 0.07, for small images 0.1.
    momentum
        The key encoder's momentum. Default: 0.999, for small images 0.99.
    queue
        Keys in the queue, a multiple of the batch. Default: 65536, for small images 4096, never more than images.
    projection
        Width of queries and keys.
    symmetric
        Average the loss over both directions, with a queue for each view.
    norm_groups
        Parts of the batch that have batch-norm statistics of their own, as on so many devices; over these keys are
        shuffled. With 1 the whole batch shares them, which closes the same leak. Default: 8, of at least 16 samples.
    """
    positive(temperature=temperature, projection=projection)
    batch = at.batch_size or (512 if at.small else 256)
    peak = 0.03 * batch / 256
    if at.small:
        view = augment.moco_v2(at.image_size, blur=False, scale=(0.08, 1.0))
        view = replace(view, normalise=augment.CIFAR10_BY_IMAGE)
    else:
        view = augment.moco_v1(at.image_size)
    method = MoCo(
        at.encoder,
        heads.mlp(at.encoder.width, projection),
        width=projection,
        size=queue_length(queue, 4096 if at.small else 65536, at.samples, batch),
        temperature=temperature or (0.1 if at.small else 0.07),
        momentum=constant((0.99 if at.small else 0.999) if momentum is None else momentum),
        symmetric=symmetric,
    )
    set_scope_(method, norm_scope(norm_groups, batch))
    lr = cosine(peak, 0.0) if at.small else steps(peak, at=(0.6, 0.8), factor=0.1)
    return _recipe(at, method, view, lr=lr, decay=5e-4 if at.small else 1e-4, epochs=200, batch=batch)


def moco_v2(
    at: Setting,
    *,
    temperature: float = 0.2,
    momentum: float | None = None,
    queue: int | None = None,
    projection: int | None = None,
    symmetric: bool | None = None,
    norm_groups: int | None = None,
) -> Recipe[TwoViews]:
    """MoCo v2: v1 with a head of two layers, blur and a cosine.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    momentum
        The key encoder's momentum at all times. Default: 0.999, for small images a cosine from 0.99 to 0.999.
    queue
        Keys in the queue, a multiple of the batch. Default: 65536, for small images 32768, never more than images.
    projection
        Width of queries and keys. Default: 128, for small images 256.
    symmetric
        Average the loss over both directions, with a queue for each view. Default: for small images only.
    norm_groups
        Parts of the batch that have batch-norm statistics of their own, as on so many devices; over these keys are
        shuffled. With 1 the whole batch shares them, which closes the same leak. Default: 8, of at least 16
        samples, for small images 1.
    """
    positive(temperature=temperature, projection=projection)
    batch = at.batch_size or 256
    w, d = at.encoder.width, projection or (256 if at.small else 128)
    usual = cosine(0.99, 0.999) if at.small else constant(0.999)
    method = MoCo(
        at.encoder,
        heads.mlp(w, 2048 if at.small else w, d, norm=False),
        width=d,
        size=queue_length(queue, 32768 if at.small else 65536, at.samples, batch),
        temperature=temperature,
        momentum=usual if momentum is None else constant(momentum),
        symmetric=at.small if symmetric is None else symmetric,
    )
    set_scope_(method, norm_scope(1 if at.small and norm_groups is None else norm_groups, batch))
    if at.small:
        view = augment.small(at.image_size, kind="symmetric_weak")
        lr = warmup_cosine(0.3 * batch / 256, warmup_epochs=10, start=3e-5)
    else:
        view = augment.moco_v2(at.image_size)
        lr = cosine(0.03 * batch / 256, 0.0)
    return _recipe(at, method, view, lr=lr, decay=1e-4, epochs=1000 if at.small else 200, batch=batch)


def _recipe(
    at: Setting, method: MoCo, view: View, *, lr: Curve, decay: float, epochs: int, batch: int
) -> Recipe[TwoViews]:
    """What both versions share: SGD on all parameters alike."""
    main = OptimiserSpec(build=partial(SGD, momentum=0.9), lr=lr, weight_decay=constant(decay), groups=decay_all)
    return Recipe(
        method=method,
        views=two_views(view),
        optimisers={"main": main},
        epochs=at.epochs or epochs,
        batch_size=batch,
    )


def queue_length(asked: int | None, paper: int, samples: int, batch: int) -> int:
    """The queue's length: as asked, or the paper's, no longer than the data and a multiple of the batch."""
    if asked is None:
        return max(min(paper, samples) // batch, 1) * batch
    if asked < 1 or asked % batch:
        raise ValueError(
            f"--queue {asked} is not a multiple of the batch of {batch}; use {max(asked // batch, 1) * batch}"
        )
    return asked


def norm_scope(groups: int | None, batch: int) -> Scope:
    """The batch norms' scope for so many groups of the batch; by default the papers' 8.

    >>> norm_scope(None, 256), norm_scope(4, 256), norm_scope(1, 256)
    (32, 64, 'all')
    """
    if groups is None:
        return norm_group(batch)
    if groups < 1 or batch % groups or (groups > 1 and batch == groups):
        raise ValueError(
            f"--norm-groups {groups} does not divide the batch of {batch} into groups of at least two; use 1 for one "
            f"group, or {batch // norm_group(batch)}"
        )
    return "all" if groups == 1 else batch // groups


def norm_group(batch: int) -> int:
    """The samples that share batch-norm statistics: an eighth of the batch, as on the papers' 8 devices, at least 16.

    >>> norm_group(256), norm_group(64), norm_group(20)
    (32, 16, 20)
    """
    groups = max(n for n in range(1, 9) if n == 1 or (batch % n == 0 and batch // n >= 16))
    return max(batch // groups, 2)


def tiny() -> dict[str, Recipe]:
    """The recipes at a size that a test can train."""

    def at() -> Setting:
        encoder = build_encoder("tiny_cnn", image_size=32)
        return Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)

    return {
        "moco_v1": on_the_world(moco_v1(at(), queue=512, projection=64)),
        "moco_v2": on_the_world(moco_v2(at(), queue=512, projection=64)),
    }
