r"""The recipe of learning to count (Noroozi et al., 2017, arXiv 1708.06734).

The method: ``selfsight.methods.counting``. The counts of four tiles add up to those of the downsampled image and not
to another's:
:math:`L = \lVert \phi(Dx) - \sum_j \phi(T_j x) \rVert^2
+ \max\{0, M - \lVert \phi(Dy) - \sum_j \phi(T_j x) \rVert^2\}`.

**Large images**: the paper's (34.3 % linear on ImageNet from AlexNet's third layer, 67.7 % mAP on VOC 2007): crops of
224 of 256 pixels, tiles of 112, a head of 4096, 4096 and 1000 units with ReLU on the last, a margin of 10, 67 % of the
pairs grey, 1e-4 times 0.9 every 10,000 updates. It names neither optimiser nor batch nor length; here these are its
authors' for their jigsaw puzzles before: SGD with momentum 0.9 and decay 5e-4, batch 256, 70 epochs (350,000 updates).

**Other sizes** scale: a crop is 7/8 of the middle square's side, brought to the image size, and a tile is half of that.
So a network for images of 224 pixels counts in images of 112. **Small images** (up to 96 px), for which nobody gives
numbers: Adam with 1e-4 and gradients clipped to a norm of 20, as gitlimlab's version has them for images of 112 pixels,
batch 128, a head of 1024, 1024 and 1000 units, 200 epochs.

**Differences**: any encoder takes AlexNet's place, with layer norm where it has batch norm. A vision transformer
serves where its patches divide a tile.
"""

from functools import partial

from torch import nn
from torch.optim import SGD, Adam

from selfsight.batches import TiledImages
from selfsight.encoders.build import build_encoder
from selfsight.methods.counting import Counting
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.recipes.tiling import width_on
from selfsight.schedules import constant, staircase
from selfsight.views.tiled import tiled
from selfsight.views.view import View

CARDS = {
    "counting": {
        "family": "pretext",
        "title": "Learning to Count",
        "year": 2017,
        "arxiv": "1708.06734",
        "fact": "Count such that an image's tiles add up to the whole, and not to another image.",
        "encoder": "resnet50",
        "norm": "layer",
    }
}

SHARE = (224 / 256) ** 2
"""Of the middle square's area, what a crop shows."""


def counting(
    at: Setting, *, units: int = 1000, hidden: int | None = None, margin: float = 10.0, grey: float = 0.67
) -> Recipe[TiledImages]:
    """Learning to count: what the tiles of an image hold adds up to what the whole holds.

    Parameters
    ----------
    at
        What the run knows.
    units
        How many things are counted.
    hidden
        Width of the head's two hidden layers. Default: 4096, for small images 1024.
    margin
        The squared distance beyond which another image's counts are different enough.
    grey
        The share of pairs of images that are shown in grey.
    """
    positive(units=units, hidden=hidden, margin=margin)
    patch = getattr(at.encoder, "patch", 1)
    if at.image_size % (2 * patch):
        raise ValueError(
            f"images of {at.image_size} px have no tiles of whole pixels or patches; "
            f"take a multiple of {2 * patch} as --image-size"
        )
    width = hidden or (1024 if at.small else 4096)
    head = nn.Sequential(*heads.mlp(width_on(at, at.image_size // 2), width, width, units, norm=False), nn.ReLU())
    method = Counting(at.encoder, head, margin=margin)
    set_scope_(method, "rank")
    view = View(size=at.image_size, scale=(SHARE, SHARE), ratio=(1, 1))
    main = OptimiserSpec(
        build=Adam if at.small else partial(SGD, momentum=0.9),
        lr=staircase(1e-4, every=10_000, factor=0.9),
        weight_decay=constant(0.0 if at.small else 5e-4),
        groups=decay_all,
        clip=20.0 if at.small else None,
    )
    return Recipe(
        method=method,
        views=tiled(view, grey=grey),
        optimisers={"main": main},
        epochs=at.epochs or (200 if at.small else 70),
        batch_size=at.batch_size or (128 if at.small else 256),
        least=2,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32, norm="layer")
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"counting": on_the_world(counting(at, units=128, hidden=128))}
