r"""The recipes of CPC (van den Oord et al., 2018, arXiv 1807.03748) and CPC v2 (Hénaff et al., 2019, arXiv 1905.09272).

The method: ``selfsight.methods.cpc``. Predict patches further down from those above, against all patches of the batch:
:math:`L_k = -\log \big(e^{P_k(c)^\top y_{r+k}} / \sum_j e^{P_k(c)^\top y_j}\big)`.

**CPC, large images**: the paper's (48.7 % linear on ImageNet with three stages of a ResNet-v2-101): grey crops of 256
of 300 pixels cut into 7x7 patches that overlap by half, of each a random sub-crop of 60 of 64 pixels, rows 1 to 5
below, Adam with 2e-4, batch 512 (16 on each of 32 GPUs). It gives no length: 200 epochs, as version 2.

**CPC, small images** (up to 96 px): Greedy InfoMax's CPC on STL-10 (crops of 64 of 96 pixels, patches of 16): one row
is skipped, Adam 2e-4, batch 32, 300 epochs. Up to 32 px whole images take the place of crops.

**CPC v2, large images**: patches of 80 pixels, 36 apart, of 260 in proportion to the image size, so 6x6 of them, rows 3
to 5 in four directions; targets of 64 dimensions and predictions times 0.1; Adam with betas 0.8 and 0.999, 4e-4, decay
1e-5, gradients clipped to a norm of 0.01, batch 512, 200 epochs.

**CPC v2, small images**: lightning-bolts' CIFAR-10: patches of a quarter of the image, half as far apart, Adam 1e-4
with an epsilon of 1e-7, batch 128; 300 epochs as for CPC.

**Differences**: CPC's encoder has no norm in the paper; here each batch norm leaves its scale and shift behind, so that
residual branches begin at zero; another encoder (``--backbone``) may not stand that, and gets layer norm. Its context
is unnamed there, PixelCNN or a row GRU: the default is version 2's masked convolutions. Greedy InfoMax's is a gated
PixelCNN of four layers. CPC v2's 71.5 % are of a ResNet-161, which is not built here; the default is a ResNet-v2-50 of
three stages (63.8 % are the paper's with a ResNet-50), in which layer norm takes batch norm's place. Version 2's
patches change by a sub-crop, a flip, two of AutoAugment's primitives, colour jitter (0.8), grey (0.25) and the loss of
two of three colours, as the paper's, but not by its elastic deformations, shears and changes of the colour histogram
(0.2 each), whose strengths it does not give. The jitter's strength and the probability of dropping colours are this
file's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn
from torch.optim import Adam

from selfsight.batches import Patches
from selfsight.encoders.build import build_encoder
from selfsight.methods.cpc import CPC
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.forecast import DIRECTIONS, Direction, Forecast, MaskedConvolutions, RowGRU
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.recipes.tiling import width_on
from selfsight.schedules import constant
from selfsight.views.patches import PatchGrid, patch_grid
from selfsight.views.view import IMAGENET, Jitter, Normalise, View

CARDS = {
    "cpc": {
        "family": "contrastive",
        "title": "CPC",
        "year": 2018,
        "arxiv": "1807.03748",
        "fact": "The rows above tell which patch lies several rows below.",
        "encoder": "resnetv2_101",
        "options": {"layers": [3, 4, 23], "zero_init_last": True, "norm": "none"},
        "small_options": {"norm": "none"},
        "norm": "layer",
    },
    "cpc_v2": {
        "family": "contrastive",
        "title": "CPC v2",
        "year": 2019,
        "arxiv": "1905.09272",
        "fact": "CPC in four directions, with layer norm and patches that are augmented one by one.",
        "encoder": "resnetv2_50",
        "options": {"layers": [3, 4, 6]},
        "norm": "layer",
    },
}

GREY = Normalise((0.412,) * 3, (0.257,) * 3)
"""Of STL-10's grey images (loeweX/Greedy_InfoMax 22d17e4, get_dataloader.py)."""
BOLTS = Normalise((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))


def cpc(
    at: Setting,
    *,
    context: Literal["masked", "gru"] = "masked",
    width: int = 256,
    depth: int = 5,
    steps: int = 5,
    skip: int | None = None,
    patch: int | None = None,
    stride: int | None = None,
    grey: float = 1.0,
    everywhere: bool = True,
) -> Recipe[Patches]:
    """CPC: the rows of patches above tell which patch lies several rows below.

    Parameters
    ----------
    at
        What the run knows.
    context
        Masked convolutions, or a gated recurrent unit that walks down the rows.
    width
        Of the masked convolutions' hidden layers, or of the recurrent unit's state.
    depth
        Blocks of masked convolutions: how many rows above a context sees besides its own.
    steps
        How many rows are predicted.
    skip
        Rows just below that are not predicted. Default: 0, for small images 1.
    patch
        Side of a patch in pixels. Default: a quarter of the image's.
    stride
        Pixels from one patch to the next. Default: half a patch, so that there are 7x7 of them.
    grey
        The share of images that are shown in grey; 1 evaluates in grey too.
    everywhere
        Candidates are the patches of all processes, instead of each process's own.
    """
    first = 1 + ((1 if at.small else 0) if skip is None else skip)
    if not 0 <= grey <= 1:
        raise ValueError(f"--grey is {grey:g}; it is a share of the images, from 0 to 1")
    positive(steps=steps, width=width, depth=depth, patch=patch, stride=stride)
    patch, stride = _grid(at.image_size, 7, 64 / 256, patch, stride)
    scale = _crop(at, 256 / 300)
    crop = View(size=at.image_size, scale=scale, ratio=(1, 1), padding=0 if scale else 4, grey=grey)
    each = View(
        size=patch,
        scale=None,
        flip=0,
        padding=round(patch * 2 / 64),
        normalise=GREY if at.small and grey >= 1 else IMAGENET,
    )
    views = patch_grid(crop, each, stride=stride)
    ahead = _ahead(range(first, first + steps), views)
    d = width_on(at, patch)
    seen = MaskedConvolutions(d, hidden=width, blocks=depth) if context == "masked" else RowGRU(d, width)
    predictors = [nn.Linear(d if context == "masked" else width, d, bias=False) for _ in ahead]
    method = CPC(at.encoder, {"down": Forecast(seen, predictors, nn.Identity())}, ahead=ahead, everywhere=everywhere)
    set_scope_(method, "all")
    main = OptimiserSpec(build=Adam, lr=constant(2e-4), weight_decay=constant(0.0), groups=decay_all)
    return Recipe(
        method=method,
        views=views,
        optimisers={"main": main},
        epochs=at.epochs or (300 if at.small else 200),
        batch_size=at.batch_size or (32 if at.small else 512),
    )


def cpc_v2(
    at: Setting,
    *,
    nearest: int = 3,
    farthest: int = 5,
    directions: Literal["four", "two", "one"] = "four",
    projection: int = 64,
    width: int = 256,
    depth: int = 5,
    patch: int | None = None,
    stride: int | None = None,
    colour_drop: float = 0.25,
    primitives: int | None = None,
    everywhere: bool = True,
) -> Recipe[Patches]:
    """CPC v2: CPC in four directions, with layer norm and patches that are augmented one by one.

    Parameters
    ----------
    at
        What the run knows.
    nearest
        The nearest row that is predicted.
    farthest
        The farthest row that is predicted.
    directions
        Predict down, down and up, or down, up, right and left.
    projection
        Width of targets and predictions.
    width
        Of the masked convolutions' hidden layers.
    depth
        Blocks of masked convolutions: how many rows above a context sees besides its own.
    patch
        Side of a patch in pixels. Default: 80 for 260, for small images a quarter of the image's.
    stride
        Pixels from one patch to the next. Default: such that there are 6x6 of them, for small images 7x7.
    colour_drop
        The share of patches that lose two of their three colours.
    primitives
        How many of AutoAugment's primitives change each patch. Default: 2, for small images 0.
    everywhere
        Candidates are the patches of all processes, instead of each process's own.
    """
    size = at.image_size
    positive(nearest=nearest, projection=projection, width=width, depth=depth)
    positive(patch=patch, stride=stride)
    patch, stride = _grid(size, 7, 64 / 256, patch, stride) if at.small else _grid(size, 6, 80 / 260, patch, stride)
    scale = _crop(at, 260 / 300)
    crop = View(size=size, scale=scale, ratio=(1, 1), padding=0 if scale else 4, flip=0)
    each = View(
        size=patch,
        scale=None,
        padding=round(patch * 2 / 64),
        jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        grey=0.25,
        normalise=BOLTS if at.small else IMAGENET,
    )
    drawn = (0 if at.small else 2) if primitives is None else primitives
    views = patch_grid(crop, each, stride=stride, drop=colour_drop, primitives=drawn)
    ahead = _ahead(range(nearest, farthest + 1), views)
    d = width_on(at, patch)
    ways = DIRECTIONS[: {"four": 4, "two": 2, "one": 1}[directions]]
    forecasts: dict[Direction, Forecast] = {
        way: Forecast(
            MaskedConvolutions(d, hidden=width, blocks=depth),
            [nn.Linear(d, projection) for _ in ahead],
            nn.Linear(d, projection),
        )
        for way in ways
    }
    method = CPC(at.encoder, forecasts, ahead=ahead, scale=0.1, average=False, everywhere=everywhere)
    set_scope_(method, "all")
    main = OptimiserSpec(
        build=partial(Adam, betas=(0.8, 0.999), eps=1e-7 if at.small else 1e-8),
        lr=constant(1e-4 if at.small else 4e-4),
        weight_decay=constant(1e-5),
        groups=decay_all,
        clip=None if at.small else 0.01,
    )
    return Recipe(
        method=method,
        views=views,
        optimisers={"main": main},
        epochs=at.epochs or (300 if at.small else 200),
        batch_size=at.batch_size or (128 if at.small else 512),
    )


def _crop(at: Setting, large: float) -> tuple[float, float] | None:
    """The share of an image's area that is cut out: ``large`` or STL-10's 64 of 96 px a side; up to 32 px all of it."""
    share = (64 / 96 if at.small else large) ** 2
    return None if at.image_size <= 32 else (share, share)


def _grid(size: int, side: int, share: float, patch: int | None, stride: int | None) -> tuple[int, int]:
    """Patch and stride: by default ``side`` patches an axis that fill it, each of about ``share`` of the image."""
    if patch is None:
        stride = stride or (size - int(size * share)) // (side - 1)
        if (side - 1) * stride >= size:
            raise ValueError(f"{side} patches an axis, {stride} px apart, do not fit into {size} px; give --patch too")
        return size - (side - 1) * stride, stride
    return patch, stride or max(1, patch // 2)


def _ahead(rows: Sequence[int], views: PatchGrid) -> Sequence[int]:
    if not rows or rows[0] < 1 or rows[-1] >= views.side:
        raise ValueError(
            f"rows {list(rows)} ahead cannot be predicted on a grid of {views.side} rows; "
            f"predict at least one, from 1 to {views.side - 1}"
        )
    return rows


def tiny() -> dict[str, Recipe]:
    """The recipes at a size that a test can train: 3x3 patches of half an image, with layer norm."""

    def at() -> Setting:
        encoder = build_encoder("tiny_cnn", image_size=32, norm="layer")
        return Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=8)

    one = cpc(at(), patch=16, stride=8, width=32, depth=1, steps=2, skip=0)
    two = cpc_v2(at(), patch=16, stride=8, width=32, depth=1, nearest=1, farthest=2)
    return {"cpc": on_the_world(one), "cpc_v2": on_the_world(two)}
