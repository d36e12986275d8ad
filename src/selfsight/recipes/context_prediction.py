r"""The recipe of context prediction (Doersch et al., 2015, arXiv 1505.05192).

The method: ``selfsight.methods.context_prediction``. Say where one patch lies, as seen from another:
:math:`L = \operatorname{mean}_{(i,j)} \mathrm{CE}(F([h_i, h_j]), y_{ij})`.

**How the paper's pixels scale.** The official code cuts patches of 96 px, 48 px apart and jittered by 7, from images of
150,000 to 450,000 pixels. Three by three of them span 398 px, and these are the image size here. So a patch is 96/398
of it (54 px at 224, 15 at 64, 8 at 32), for a vision transformer the next smaller whole number of its patches; the
jitter is 7/96 of the patch, at least 1 px; the gap is what is left, about half a patch. The span is a square of 35 to
100 % of the image, since 398 x 398 pixels are that share of 450,000 and of 150,000.

**Large images**: the schedule of open-mmlab/mmselfsup, since the code's (1e-5 on a summed loss, no momentum, no decay,
1.7 million updates) is a CaffeNet's: SGD with momentum 0.9, 0.2 x batch / 512 after a warm-up of 5 epochs, a tenth of
it at epochs 30 and 50 of 70, decay 1e-4, batch 512.

**Small images** (up to 96 px): neither paper nor code has any. The same with 300 epochs, a batch of 256, hidden layers
of 1024 and squares of half to all of the image: this file's choice.

**Differences**: a crop's area is uniform here, the code's total of pixels is. mmselfsup's decay is five times larger on
the head, and its grid is jigsaw's (cells of 85 of 255 px, patches of 64), which patches may touch in. With a jitter of
1 px a patch of a small image still shows its place on a grid of 8 px that JPEG left in the data; photographs that were
made smaller have none. The encoder is trained on normalised patches of one colour and evaluated on whole images in
colour: the paper's networks are fine-tuned. Batch norm sees one process's patches.
"""

from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import PatchPairs
from selfsight.encoders.build import build_encoder
from selfsight.methods.context_prediction import ContextPrediction
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.recipes.tiling import whole_patches, width_on
from selfsight.schedules import constant, steps
from selfsight.views.pairs import Colour, Which, patch_pairs
from selfsight.views.view import View

CARDS = {
    "context_prediction": {
        "family": "pretext",
        "title": "Context prediction",
        "year": 2015,
        "arxiv": "1505.05192",
        "fact": "Say at which of eight places round one patch of an image another lies.",
        "encoder": "resnet50",
    }
}


def context_prediction(
    at: Setting,
    *,
    patch: int | None = None,
    gap: int | None = None,
    jitter: int | None = None,
    colour: Colour = "drop",
    coarse: float = 0.33,
    pairs: Which = "centre",
    hidden: int | None = None,
) -> Recipe[PatchPairs]:
    """Context prediction: say at which of eight places round one patch of an image another lies.

    Parameters
    ----------
    at
        What the run knows.
    patch
        Side of a patch in pixels. Default: 96/398 of the image's, in whole patches of a vision transformer.
    gap
        Pixels between two patches, before the jitter. Default: as many as fit, about half a patch.
    jitter
        By how many pixels each patch is moved at most. Default: 7/96 of a patch, at least 1.
    colour
        Drop two of each patch's colours, project green against magenta out, or keep all.
    coarse
        The share of patches that are made smaller and enlarged again.
    pairs
        The pairs of the centre with its eight neighbours, or all that touch, in both orders.
    hidden
        Width of the head's two hidden layers. Default: 4096, for small images 1024.
    """
    positive(patch=patch, hidden=hidden)
    size = at.image_size
    patch = patch or whole_patches(at, round(size * 96 / 398))
    jitter = max(1, round(patch * 7 / 96)) if jitter is None else jitter
    gap = max(0, (size - 2 * jitter - 3 * patch) // 2) if gap is None else gap
    crop = View(size=size, scale=(0.5 if at.small else 0.35, 1.0), ratio=(1, 1), flip=0)
    views = patch_pairs(crop, patch=patch, gap=gap, jitter=jitter, colour=colour, coarse=coarse, which=pairs)
    width = hidden or (1024 if at.small else 4096)
    head = nn.Sequential(
        nn.Linear(2 * width_on(at, patch), width),
        nn.BatchNorm1d(width, affine=False),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, 8),
    )
    method = ContextPrediction(at.encoder, head)
    set_scope_(method, "rank")
    batch = at.batch_size or (256 if at.small else 512)
    warmup = 5 * (at.samples // batch)
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=steps(0.2 * batch / 512, at=(30 / 70, 50 / 70), factor=0.1, warmup_updates=warmup),
        weight_decay=constant(1e-4),
        groups=decay_all,
    )
    return Recipe(
        method=method,
        views=views,
        optimisers={"main": main},
        epochs=at.epochs or (300 if at.small else 70),
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"context_prediction": on_the_world(context_prediction(at, hidden=128))}
