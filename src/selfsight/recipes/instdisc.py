r"""The recipes of InstDisc (Wu et al., 2018, arXiv 1805.01978) and of noise-contrastive estimation in its bank.

The method, one for both: ``selfsight.methods.instdisc``. Every image is a class, and a bank of embeddings stands in for
the classifier: :math:`P(j|f) = e^{v_j^\top f / \tau} / Z`. ``instdisc`` follows that paper's code, ``nce`` keeps to the
estimator (Gutmann and Hyvärinen, 2010), whose constant :math:`Z` is learnt with the network.

**Large images**: the official ImageNet command (46.8 % by nearest neighbours with ResNet-50): SGD, 0.03 x batch / 256,
a tenth of it at 60 % and at 80 % of the training, decay 1e-4, batch 256, 200 epochs, 4096 negatives, τ 0.07, bank
momentum 0.5. The repository's later model is ``--loss softmax --negatives 65536`` (58.5 % linear).

**Small images** (up to 96 px): the official CIFAR-10 command: 0.03 x batch / 128 with the same steps, decay 5e-4, batch
128, 200 epochs, τ 0.1, no flip, each colour divided by the mean deviation within an image; ``instdisc`` takes the
softmax over the whole bank, ``nce`` 4096 negatives.

**Differences**: the rates scale with the batch, which the code's do not. Accounts of the paper give 30 as its proximal
weight, which its code does not have, so the default is 0. ``nce`` has no large-scale result of its own: what the
estimator has published in such a bank is ``--z estimated``. A learnt :math:`\log Z` starts at :math:`\log n` and has an
optimiser of its own, without decay, which ``--lr`` and ``--weight-decay`` leave alone: its gradient's scale is not the
network's. Batch norm sees one process's batch, as in the code's ``DataParallel``. A ResNet begins with a scale of zero
in each block's last norm, the code's with one.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

from torch.optim import SGD

from selfsight.batches import Images
from selfsight.encoders.build import build_encoder
from selfsight.methods.instdisc import InstDisc
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.memory import Bank
from selfsight.parts.partition import Kind, Partition
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, steps
from selfsight.views import augment
from selfsight.views.pipelines import one_view
from selfsight.views.view import View

CARDS = {
    "nce": {
        "family": "contrastive",
        "title": "NCE",
        "year": 2010,
        "fact": "Tell an image's own embedding in a memory bank from drawn noise, with a learnt constant.",
        "encoder": "resnet50",
    },
    "instdisc": {
        "family": "contrastive",
        "title": "InstDisc",
        "year": 2018,
        "arxiv": "1805.01978",
        "fact": "Every image is a class of its own; a memory bank is the classifier.",
        "encoder": "resnet50",
    },
}


def instdisc(
    at: Setting,
    *,
    loss: Literal["nce", "softmax"] | None = None,
    negatives: int | None = None,
    temperature: float | None = None,
    bank_momentum: float = 0.5,
    proximal: float = 0.0,
    projection: int = 128,
) -> Recipe[Images]:
    """InstDisc: tell an image from all others by a memory of their embeddings.

    Parameters
    ----------
    at
        What the run knows.
    loss
        Noise-contrastive estimation with a constant from the first batch, or a softmax. Default: nce, for small images
        softmax.
    negatives
        Drawn rows of the bank for each image; 0 takes the whole bank, in a softmax. Default: 4096 for nce, 0 for
        softmax.
    temperature
        The loss's temperature. Default: 0.07, for small images 0.1.
    bank_momentum
        What a row of the bank keeps of itself when its image is seen.
    proximal
        Weight of the squared distance between an embedding and its row of the bank; 30 in notes on the paper.
    projection
        Width of the embedding.
    """
    if loss not in (None, "nce", "softmax"):
        raise ValueError(f"--loss is '{loss}'; choose nce or softmax")
    kind = loss or ("softmax" if at.small else "nce")
    count = (4096 if kind == "nce" else 0) if negatives is None else negatives
    partition = Partition(at.samples, "estimated") if kind == "nce" else None
    return _recipe(
        at,
        partition,
        negatives=count,
        temperature=temperature,
        bank_momentum=bank_momentum,
        proximal=proximal,
        projection=projection,
    )


def nce(
    at: Setting,
    *,
    z: Kind = "learnt",
    log_z: float | None = None,
    negatives: int = 4096,
    temperature: float | None = None,
    bank_momentum: float = 0.5,
    projection: int = 128,
) -> Recipe[Images]:
    """NCE: tell an image's own embedding in a memory bank from noise.

    Parameters
    ----------
    at
        What the run knows.
    z
        The normalising constant: learnt with the network, fixed, or estimated from the first batch and then fixed.
    log_z
        The constant's logarithm where it is fixed, its start where it is learnt. Default: that of the number of images.
    negatives
        Noise samples for each image, drawn uniformly from the bank.
    temperature
        The loss's temperature. Default: 0.07, for small images 0.1.
    bank_momentum
        What a row of the bank keeps of itself when its image is seen.
    projection
        Width of the embedding.
    """
    return _recipe(
        at,
        Partition(at.samples, z, log_z=log_z),
        negatives=negatives,
        temperature=temperature,
        bank_momentum=bank_momentum,
        projection=projection,
    )


def _recipe(
    at: Setting,
    partition: Partition | None,
    *,
    negatives: int,
    temperature: float | None,
    bank_momentum: float,
    projection: int,
    proximal: float = 0.0,
) -> Recipe[Images]:
    """What both share."""
    positive(temperature=temperature, projection=projection)
    if not 0 <= bank_momentum < 1:
        raise ValueError(f"--bank-momentum must lie in [0, 1), not {bank_momentum:g}")
    if negatives < 0 or proximal < 0:
        raise ValueError(f"--negatives and --proximal must be at least 0, not {negatives} and {proximal:g}")
    batch = at.batch_size or (128 if at.small else 256)
    method = InstDisc(
        at.encoder,
        heads.mlp(at.encoder.width, projection),
        Bank(at.samples, projection),
        temperature=temperature or (0.1 if at.small else 0.07),
        negatives=negatives,
        partition=partition,
        momentum=bank_momentum,
        proximal=proximal,
    )
    set_scope_(method, "rank")
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=steps(0.03 * batch / (128 if at.small else 256), at=(0.6, 0.8), factor=0.1),
        weight_decay=constant(5e-4 if at.small else 1e-4),
        groups=decay_all,
    )
    learnt = {"constant": _constant()} if "constant" in method.trainables() else {}
    return Recipe(
        method=method,
        views=one_view(_view(at)),
        optimisers={"main": main} | learnt,
        epochs=at.epochs or 200,
        batch_size=batch,
    )


def _constant() -> OptimiserSpec:
    r"""The optimiser of a learnt constant: our choice, for any network, batch and number of negatives.

    The loss is convex in :math:`\log Z`. Its derivative is one less the number of samples that are held for data, for
    each datum; where that is zero the curvature is at most one, so plain descent by half of it neither oscillates nor
    lags. Where the constant is too small the derivative is as large as the number of negatives, hence the clipping: it
    moves by a half an update at most. An untrained network makes all embeddings alike, so that :math:`\log Z` rises by
    nearly :math:`1 / \tau` within the first epoch. Until the constant has followed, all noise passes for data and the
    positive teaches nothing: at the network's own rate under AdamW that lasted for the whole of a short training.
    """
    return OptimiserSpec(build=SGD, lr=constant(0.5), weight_decay=constant(0.0), groups=decay_all, clip=1.0, keep=True)


def _view(at: Setting) -> View:
    """MoCo v1's view, which took it from here; for CIFAR jitter before grey, and no flip."""
    view = augment.moco_v1(at.image_size)
    if not at.small:
        return view
    return replace(view, flip=0.0, normalise=augment.CIFAR10_BY_IMAGE, order=("jitter", "grey", "blur", "solarise"))


def tiny() -> dict[str, Recipe]:
    """The recipes at a size that a test can train; 2048 are the images of the tests' world.

    A row of the bank is as old as an epoch, here 32 updates, and it takes several until an image is told from others by
    it: at the rate that suits methods without a memory it is outdated when it is read again.
    """

    def at(size: int) -> Setting:
        encoder = build_encoder("tiny_cnn", image_size=size)
        return Setting(encoder=encoder, image_size=size, samples=2048, epochs=5, batch_size=64)

    return {
        "nce": on_the_world(nce(at(24), negatives=256, projection=64), peak=1e-3),
        "instdisc": on_the_world(instdisc(at(16), projection=64), peak=1e-3),
    }
