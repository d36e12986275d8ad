r"""The recipes of SimMIM (Xie et al., 2022, arXiv 2111.09886), with ViT and with Swin. The method:
``selfsight.methods.simmim``.

Hide cells of 32 pixels, six in ten, behind one learnt token, and predict their pixels with one linear layer:
:math:`L = \frac1{C \, |M|} \sum_{u \in M} \lVert \hat x_u - x_u \rVert_1`.

**Large images**: microsoft/SimMIM d3e29bc, ``configs/*__800ep``: AdamW with decay 0.05 and gradients clipped to 5,
1e-4 x batch / 512 after a warm-up of 10 epochs, a tenth of it from epoch 700 of 800, batch 2048, crops of (0.67, 1). Up
to 100 epochs it is ``configs/swin_base__100ep``: 2e-4 x batch / 512 and a cosine to 1e-5 x batch / 512. ViT-B is BEiT's
body and start (weights cut off at 0.02, one deviation) with one table of relative positions for all blocks, no absolute
ones, layer scale 0.1 and drop path 0.1 (83.8 % fine-tuned); Swin-B has no drop path (84.0 %).

**Small images** (up to 96 px): no paper's. Cells of an eighth of the side, or what is nearest to it: the mean distance
of a hidden pixel to the nearest visible one is then 0.06 to 0.08 of the side, as with 32 px at 192 (the paper's
AvgDist). Patches of 4 px for the ViT, 2 for Swin, batch 512, else as above.

**Differences**: the code trains Swin at 192 px with windows of 6 patches and fine-tunes it at 224 with windows of 7;
here windows follow the size, so that they divide the map. The warm-up begins at one update's share of the peak, in the
code at 5e-7 x batch / 512. The paper's ViT is timm's ``beit_base_patch16_224`` with other options; any other BEiT or
Swin of timm's will do, or a plain vision transformer, which begins as timm's. A ViT's class token, which no loss reads,
is not the feature: the mean of the patches is.
"""

import math
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW

from selfsight.batches import MaskedImages
from selfsight.encoders.beit import BeitEncoder, begin_, cut_normal_
from selfsight.encoders.build import build_encoder
from selfsight.encoders.pooling import pool_patches_
from selfsight.encoders.protocol import MaskableEncoder
from selfsight.encoders.swin import Swin
from selfsight.engine.optimisers import skip_vectors_and_tokens
from selfsight.methods.simmim import SimMIM
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Group, OptimiserSpec, Recipe, Setting, positive
from selfsight.schedules import Curve, constant, steps, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import masked_view

CARDS = {
    "simmim": {
        "family": "masked",
        "title": "SimMIM",
        "year": 2022,
        "arxiv": "2111.09886",
        "fact": "Predict the pixels of large hidden cells with one linear layer.",
        "encoder": "beit_base_patch16_224",
        "options": {
            "use_rel_pos_bias": False,
            "use_shared_rel_pos_bias": True,
            "use_fc_norm": False,
            "drop_path_rate": 0.1,
        },
        "small_encoder": "beit_base_patch16_224",
        "small_options": {
            "patch_size": 4,
            "embed_dim": 192,
            "num_heads": 3,
            "use_rel_pos_bias": False,
            "use_shared_rel_pos_bias": True,
            "use_fc_norm": False,
            "drop_path_rate": 0.1,
        },
        "needs": "tokens",
    },
    "simmim_swin": {
        "family": "masked",
        "title": "SimMIM, Swin",
        "year": 2022,
        "arxiv": "2111.09886",
        "fact": "SimMIM with an encoder of shifted windows.",
        "encoder": "swin_base_patch4_window7_224",
        "options": {"drop_path_rate": 0.0},
        "small_encoder": "swin_tiny_patch4_window7_224",
        "small_options": {"patch_size": 2, "drop_path_rate": 0.0},
        "needs": "windows",
    },
}


def simmim(at: Setting, *, mask_ratio: float = 0.6, mask_cell: int | None = None) -> Recipe[MaskedImages]:
    """SimMIM: predict the pixels of large hidden cells with one linear layer.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of cells that are hidden, rounded up.
    mask_cell
        Pixels along the side of a cell. Default: 32, up to 96 px about an eighth of the image's side.
    """
    encoder, name = at.encoder, getattr(at.encoder, "name", type(at.encoder).__name__)
    if not isinstance(encoder, MaskableEncoder):
        raise ValueError(f"simmim needs a ViT, BEiT or Swin, not {name}; try --backbone vit_base_patch16_224")
    positive(mask_cell=mask_cell)
    pool_patches_(encoder)
    if isinstance(encoder, Swin):
        fit_(encoder, at.image_size)
    cell = mask_cell or _cell(at.image_size, encoder.patch, small=at.small)
    if at.image_size % cell or cell % encoder.patch:
        raise ValueError(
            f"cells of {cell} px do not divide {at.image_size} px or do not hold whole patches of {encoder.patch} px; "
            "give another --mask-cell"
        )
    cells = (at.image_size // cell) ** 2
    hidden = math.ceil(mask_ratio * cells)
    if not 0 < hidden < cells:
        raise ValueError(f"--mask-ratio {mask_ratio:g} hides {hidden} of {cells} cells; some must stay, some must go")
    batch = at.batch_size or (512 if at.small else 2048)
    epochs = at.epochs or 800
    warmup = 10 * max(at.samples // batch, 1)
    main = OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.999)),
        lr=_rate(epochs, batch, warmup),
        weight_decay=constant(0.05),
        groups=skip_position_biases,
        clip=5.0,
    )
    method = SimMIM(encoder, embedded=_embedded(encoder), channels=at.channels)
    if isinstance(encoder, BeitEncoder):
        if not at.begun:
            begin_(encoder)
        cut_normal_(method.mask_token)
    share = (hidden - 0.5) / cells  # the number of cells as it is counted above, however it is rounded there
    return Recipe(
        method=method,
        views=masked_view(augment.simmim(at.image_size), patch=cell, ratio=share),
        optimisers={"main": main},
        epochs=epochs,
        batch_size=batch,
    )


def fit_(encoder: Swin, image_size: int) -> None:
    """Windows that divide every stage's map; a ``ValueError`` where there are none of use."""
    deepest = encoder.patch * 2 ** (len(encoder.model.layers) - 1)
    if image_size % deepest:
        near = max(round(image_size / deepest), 1) * deepest
        raise ValueError(
            f"Swin merges patches until they are {deepest} px, which do not divide {image_size} px; "
            f"use --image-size {near}"
        )
    most = max(encoder.window, 3)
    encoder.fit_windows_()
    if encoder.window < 3:
        raise ValueError(
            f"no windows of 3 to {most} patches divide Swin's maps at {image_size} px; use --image-size "
            f"{(most if image_size >= 5 * deepest else min(most, 4)) * deepest}"
        )


def simmim_swin(at: Setting, *, mask_ratio: float = 0.6, mask_cell: int | None = None) -> Recipe[MaskedImages]:
    """SimMIM with Swin.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of cells that are hidden, rounded up.
    mask_cell
        Pixels along the side of a cell. Default: 32, up to 96 px about an eighth of the image's side.
    """
    return simmim(at, mask_ratio=mask_ratio, mask_cell=mask_cell)


def skip_position_biases(name: str, parameter: nn.Parameter) -> Group:
    """As ``skip_vectors_and_tokens``; tables of relative positions do not decay either."""
    if name.endswith("relative_position_bias_table"):
        return Group(decay=False, adapt=False)
    return skip_vectors_and_tokens(name, parameter)


def _cell(size: int, patch: int, *, small: bool) -> int:
    """32 pixels; for small images what holds whole patches, divides the image and is nearest to an eighth of it."""
    if not small:
        return 32
    fitting = [cell for cell in range(patch, size, patch) if size % cell == 0]
    return min(fitting, key=lambda cell: abs(cell - size / 8), default=size)


def _rate(epochs: int, batch: int, warmup: int) -> Curve:
    scale = batch / 512
    if epochs <= 100:
        return warmup_cosine(2e-4 * scale, warmup_epochs=10, start=1e-6 * scale, end=1e-5 * scale)
    return steps(1e-4 * scale, at=(700 / 800,), factor=0.1, warmup_updates=warmup)


def _embedded(encoder: MaskableEncoder) -> int:
    """The width of an encoder's patches."""
    model: Any = getattr(encoder, "model", encoder)
    return model.patch_embed.proj.out_channels


def tiny() -> dict[str, Recipe]:
    """Both at a size that a test can train."""
    shared: Any = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
    vit = build_encoder(
        "beit_base_patch16_224", image_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=2, **shared
    )
    windows: Any = {"patch_size": 2, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "drop_path_rate": 0.0}
    swin = build_encoder("swin_tiny_patch4_window7_224", image_size=32, **windows)
    made: dict[str, Recipe] = {}
    for name, encoder, recipe in (("simmim", vit, simmim), ("simmim_swin", swin, simmim_swin)):
        at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
        made[name] = on_the_world(recipe(at), peak=5e-3)
    return made
