r"""The recipe of Context Encoders (Pathak et al., 2016, arXiv 1604.07379).

The method: ``selfsight.methods.context_encoder``.

Paint what is missing of an image from what surrounds it:
:math:`L = (1 - \lambda) \lVert \hat M \odot (x - F((1 - \hat M) \odot x)) \rVert_2^2 - \lambda \log D(F)`.

**Features** (the default): a region of 20 to 30 % of the image is hidden, the squared error alone, a channel-wise
layer. The paper reports 100,000 iterations on ImageNet, and that with a discriminator its AlexNet did not converge;
here that many updates of 64 images are made, in at most 500 epochs. Adam with beta 0.5 and the rate 2e-4 without a
discriminator are the official code's. Its evaluation with AlexNet is 56.5 % on VOC 2007.

**Inpainting** (``--hole centre``): all of the official README's command: the square in the middle, an overlap of 4 of
128 px with ten times the squared error, λ 0.001, a fully connected bottleneck of 4000, the rate 2e-3 for the painter
and 2e-4 for the discriminator, batch 64, 500 epochs, crops of 128 of 350 px. Behind a ResNet-50 the
bottleneck has the code's 66 million weights at ``--image-size 128``, and 201 million at 224. ``--adversarial 0.001``
alone is its other program, regions with a discriminator of the whole image.

**Small images** (up to 96 px): nothing is published; the same, in crops of half of the image to all of it. Those are
the crops of features of large images, too: the paper does not say more than its AlexNet's 227 px.

**Differences**: encoders are the common ones, in the place of AlexNet and of the code's six convolutions. A map of
more channels than the code's 512 is brought to these by a 1x1 convolution before the bottleneck. The overlap grows with
the image. Batch norm, also of the discriminator, is over all processes. The paper's regions have the shapes of PASCAL's
segments, the code's and these are smoothed noise. A ViT's class token, which no loss reads, is not the feature: the
mean of the patches is.
"""

from functools import partial

from torch.optim import Adam

from selfsight.batches import HiddenPixels
from selfsight.encoders.build import build_encoder
from selfsight.encoders.dense import dense_shape
from selfsight.encoders.pooling import pool_patches_
from selfsight.methods.context_encoder import ContextEncoder
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.inpainting import Discriminator, Painter
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant
from selfsight.views.holes import Hole, holed_view
from selfsight.views.view import Normalise, View

CARDS = {
    "context_encoder": {
        "family": "pretext",
        "title": "Context Encoder",
        "year": 2016,
        "arxiv": "1604.07379",
        "fact": "Paint what is missing of an image from what surrounds it.",
        "encoder": "resnet50",
    }
}

HALF = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""To [-1, 1], which is also what the painter gives."""
FILL = (123 / 255, 117 / 255, 104 / 255)
"""ImageNet's mean colour, as Caffe's users write it."""
_UPDATES = 100_000


def context_encoder(
    at: Setting,
    *,
    hole: Hole = "region",
    adversarial: float | None = None,
    overlap: int | None = None,
    bottleneck: int | None = None,
    filters: int = 64,
) -> Recipe[HiddenPixels]:
    """Context Encoder: paint what is missing of an image from what surrounds it.

    Parameters
    ----------
    at
        What the run knows.
    hole
        What is hidden: a region of any shape, blocks (four small squares), or the centre.
    adversarial
        Weight of the discriminator's judgement, 0 for none; the squared error has the rest. Default: 0, for the centre
        0.001.
    overlap
        Width in pixels of a visible rim that is painted too, with ten times the weight. Default: 0, for the centre a
        32nd of the image's side.
    bottleneck
        Width of a fully connected layer between encoder and decoder, 0 for the channel-wise layer. Default: 0, for the
        centre 4000.
    filters
        Channels of the decoder's last layer and of the discriminator's first.
    """
    positive(filters=filters)
    central, size = hole == "centre", at.image_size
    weight = (0.001 if central else 0.0) if adversarial is None else adversarial
    width = (max(1, round(4 * size / 128)) if central else 0) if overlap is None else overlap
    if not 0 <= weight < 1:
        raise ValueError(f"--adversarial is {weight:g}; it must be at least 0 and below 1")
    for name, value in (("overlap", width), ("bottleneck", bottleneck or 0)):
        if value < 0:
            raise ValueError(f"--{name} is {value}; it must be at least 0")
    scale, ratio = ((0.1, 0.134), (1.0, 1.0)) if central and not at.small else ((0.5, 1.0), (3 / 4, 4 / 3))
    views = holed_view(
        View(size=size, scale=scale, ratio=ratio, normalise=HALF), hole=hole, overlap=width if central else 0
    )
    pool_patches_(at.encoder)
    painted = size // 2 if central else size
    inside, grid = dense_shape(at.encoder, size, at.channels)
    channels, full = at.channels, (4000 if central else 0) if bottleneck is None else bottleneck
    method = ContextEncoder(
        at.encoder,
        Painter(inside, grid, channels, painted, filters=filters, bottleneck=full),
        Discriminator(channels, painted, filters=filters) if weight else None,
        fill=[2 * value - 1 for value in (FILL if channels == 3 else (sum(FILL) / 3,) * channels)],
        adversarial=weight,
        overlap=width,
    )
    set_scope_(method, "all")

    def adam(rate: float, *, keep: bool = False) -> OptimiserSpec:
        return OptimiserSpec(
            build=partial(Adam, betas=(0.5, 0.999)),
            lr=constant(rate),
            weight_decay=constant(0.0),
            groups=decay_all,
            keep=keep,
        )

    batch = at.batch_size or 64
    most = 500 if central else min(500, max(1, round(_UPDATES * batch / at.samples)))
    players = {"main": adam(2e-3 if weight else 2e-4)}
    return Recipe(
        method=method,
        views=views,
        optimisers={**players, "adversary": adam(2e-4, keep=True)} if weight else players,
        epochs=at.epochs or most,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with both players."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"context_encoder": on_the_world(context_encoder(at, adversarial=0.001, filters=16), peak=1e-3)}
