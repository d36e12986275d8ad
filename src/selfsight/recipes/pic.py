r"""The recipe of PIC (Cao et al., 2020, arXiv 2006.14618). The method: ``selfsight.methods.pic``.

Every image is a class with a trained weight, and the softmax runs over the classes seen last:
:math:`L = -\log \big(e^{\cos(w_i, z_i) / \tau} / \sum_{j \in R} e^{\cos(w_j, z_i) / \tau}\big)`.

**Large images**: the official script's: SGD, 0.03 x batch / 256, decay 1e-4 on the classes' weights too, batch 256, a
fortieth of the training as warm-up from a hundredth of the rate, then a cosine to 1e-6, 200 epochs, τ 0.2, a head of
two layers without batch norm, SimCLR's crop and colours, a window of 131072 images that slides by 16384.
``--image-size 160 --small-crops 3`` is the official multi-crop run (68.6 % linear on ImageNet with ResNet-50).

**Small images** (up to 96 px): the paper has none. These are the same numbers with SimCLR's weaker CIFAR-10 view at
batch 128, our choice. CIFAR-10 fits into one window and into the classes kept, so there is nothing to slide or to leave
out.

**Differences**: an epoch is as many updates as the data fill; the code counts passes over the window and multiplies its
epochs. Its warm-up is a fortieth of the epochs rounded down. The softmax runs over the last 65536 positives, as the
paper is said to; the code's runs over all images, so that this number could not be checked. The classes keep their
optimiser, whose correction is part of the method: ``--optimiser adamw``, ``--lr`` and ``--weight-decay`` are for the
network, ``--classes-lr`` is for them. Their weights and velocity lie on the device. Batch norm sees one process's
batch, as in the code. A ResNet begins with a scale of zero in each block's last norm, as the code's does.
"""

from dataclasses import replace
from functools import partial

from torch.optim import SGD

from selfsight.batches import MultiCrop
from selfsight.data.order import SHUFFLED, Order, SlidingWindow
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LateSGD
from selfsight.methods.pic import PIC
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.rows import Rows
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import Pipeline, single_crop
from selfsight.views.view import IMAGENET

CARDS = {
    "pic": {
        "family": "contrastive",
        "title": "PIC",
        "year": 2020,
        "arxiv": "2006.14618",
        "fact": "Classify each image as itself, over a window of images that slides.",
        "encoder": "resnet50",
    }
}


def pic(
    at: Setting,
    *,
    temperature: float = 0.2,
    recent: int = 65536,
    window: int = 131072,
    stride: int = 16384,
    small_crops: int = 0,
    classes_lr: float | None = None,
    projection: int = 128,
    hidden: int = 2048,
) -> Recipe[MultiCrop]:
    """PIC: classify each image as itself, with a trained weight for every image.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature.
    recent
        Classes that the softmax runs over: those that were positives last, no fewer than the batch. Never more than
        images.
    window
        Images that are shown in one pass, in random order. More than there are images stands for all, as usual.
    stride
        By how many images the window moves after a pass.
    small_crops
        Crops of three fifths of the image's size beside the large one, which then shows 14 % of the image or more.
    classes_lr
        Peak learning rate of the classes' weights, whatever trains the network. Default: 0.03 x batch / 256.
    projection
        Width of features and weights.
    hidden
        Width of the head's hidden layer.
    """
    positive(temperature=temperature, recent=recent, window=window, stride=stride, classes_lr=classes_lr)
    positive(projection=projection, hidden=hidden)
    batch = at.batch_size or (128 if at.small else 256)
    if min(recent, window) < batch:
        raise ValueError(
            f"the batch of {batch} is larger than --recent {recent} or --window {window}; use more of them"
        )
    method = PIC(
        at.encoder,
        heads.mlp(at.encoder.width, hidden, projection, norm=False),
        Rows(at.samples, projection),
        temperature=temperature,
        recent=min(recent, at.samples),
    )
    set_scope_(method, "rank")
    epochs, peak = at.epochs or 200, 0.03 * batch / 256
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=warmup_cosine(peak, warmup_epochs=epochs / 40, start=peak / 100, end=1e-6),
        weight_decay=constant(1e-4),
        groups=decay_all,
    )
    late, own = partial(LateSGD, momentum=0.9), main.lr.with_peak(classes_lr or peak)
    return Recipe(
        method=method,
        views=_views(at, small_crops),
        optimisers={"main": main, "classes": replace(main, build=late, lr=own, keep=True)},
        epochs=epochs,
        batch_size=batch,
        order=_order(at.samples, window, stride),
    )


def _order(samples: int, window: int, stride: int) -> Order:
    """A sliding window, where there are more images than fit in."""
    return SHUFFLED if samples <= window else SlidingWindow(window, stride)


def _views(at: Setting, small_crops: int) -> Pipeline[MultiCrop]:
    """One large crop, and small ones of 96 for 160 pixels."""
    least = 0.14 if small_crops else 0.08
    if at.small:
        weak = augment.simclr(at.image_size, strength=0.5, blur=False)
        large = replace(weak, scale=(least, 1.0), interpolation="bilinear", normalise=augment.CIFAR10)
    else:
        large = replace(augment.swav(at.image_size, scale=(least, 1.0)), normalise=IMAGENET)
    small = replace(large, size=max(round(at.image_size * 0.6 / 8), 1) * 8, scale=(0.08, 0.14))
    return single_crop(large, [small] * small_crops)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train; 2048 are the images of the tests' world.

    The classes' rate lets a weight follow its image within a few visits: in 320 updates an image is seen eight times in
    a row, in as many windows, and then not for long.
    """
    encoder = build_encoder("tiny_cnn", image_size=24)
    at = Setting(encoder=encoder, image_size=24, samples=2048, epochs=5, batch_size=64)
    return {"pic": on_the_world(pic(at, recent=512, window=512, stride=64, classes_lr=0.02, projection=64, hidden=128))}
