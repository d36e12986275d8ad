r"""The recipe of MP3 (Zhai et al., 2022, arXiv 2207.07611). The method: ``selfsight.methods.mp3``.

Give a transformer patches without positions, let all of them look at a random few, and let it say where each lies:
:math:`L = \frac1N \sum_i -\log \mathrm{softmax}(z_i)_i`.

The authors published no code, and the paper takes DeiT's settings; what is said here of its own is second-hand, since
no table of it could be checked.

**Large images**: DeiT's settings (facebookresearch/deit 0282d2a, ``main.py``): AdamW, 5e-4 x batch / 512 after a
warm-up of 5 epochs from 1e-6, a cosine to 1e-5, decay 0.05, batch 1024. 100 epochs, three quarters of the patches out
of the context. Mixup, CutMix and label smoothing, which mix or soften positions, are off, as in
arshadshk/Position-Prediction-Pretraining (14795d5). Crop and flip are MAE's.

**Small images** (up to 96 px): that repository's CIFAR-100 command, DeiT's settings with patches of 4 pixels and half
of them out of the context; batch 256, and 2000 epochs. Its encoder is a ViT-S, here a ViT-Tiny as for MAE.

**Differences**: DeiT's RandAugment, random erasing, drop path and average of weights are left out, whether or not the
authors pretrained with them. A class token, which no loss reads, is not the feature: the mean of the patches is.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.context import is_plain
from selfsight.encoders.pooling import pool_patches_
from selfsight.encoders.protocol import ContextEncoder
from selfsight.methods.mp3 import MP3
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import masked_view

CARDS = {
    "mp3": {
        "family": "masked",
        "title": "MP3",
        "year": 2022,
        "arxiv": "2207.07611",
        "fact": "Say where in the image each patch lies, without being told any position.",
        "encoder": "vit_base_patch16_224",
        "options": {"class_token": False, "global_pool": "avg"},
        "small_encoder": "vit_tiny_patch16_224",
        "small_options": {"patch_size": 4, "class_token": False, "global_pool": "avg"},
        "needs": "tokens",
    }
}


def mp3(at: Setting, *, mask_ratio: float | None = None) -> Recipe[MaskedImages]:
    """MP3: say where each patch lies.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of patches outside of the context, at which no patch can look. Default: 0.75, for small images 0.5.
    """
    encoder = at.encoder
    if not isinstance(encoder, ContextEncoder):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(f"mp3 needs a vision transformer, not {name}; try --backbone vit_base_patch16_224")
    if at.image_size % encoder.patch:
        raise ValueError(f"patch {encoder.patch} does not divide an image of {at.image_size} px; choose another size")
    without_order_(encoder)
    pool_patches_(encoder)
    head = nn.Linear(encoder.width, (at.image_size // encoder.patch) ** 2)
    nn.init.trunc_normal_(head.weight, std=0.02)  # as timm and DeiT begin: the first loss is close to log N
    nn.init.zeros_(head.bias)
    batch = at.batch_size or (256 if at.small else 1024)
    main = OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.999)),
        lr=warmup_cosine(5e-4 * batch / 512, warmup_epochs=5, start=1e-6, end=1e-5),
        weight_decay=constant(0.05),
        groups=skip_vectors,
    )
    ratio = (0.5 if at.small else 0.75) if mask_ratio is None else mask_ratio
    return Recipe(
        method=MP3(encoder, head),
        views=masked_view(augment.mae(at.image_size), patch=encoder.patch, ratio=ratio),
        optimisers={"main": main},
        epochs=at.epochs or (2000 if at.small else 100),
        batch_size=batch,
    )


def without_order_(encoder: ContextEncoder) -> None:
    """Takes from a transformer all that tells where a patch lies, and refuses one that would know it all the same.

    Positions become zero and are not trained: those of a trained encoder too.
    """
    model: Any = getattr(encoder, "model", encoder)
    name = getattr(encoder, "name", type(encoder).__name__)
    cut = getattr(model.patch_embed, "proj", None)
    if not isinstance(cut, nn.Conv2d) or cut.kernel_size != cut.stride or any(cut.padding):
        raise ValueError(f"mp3 needs patches that do not overlap, {name}'s do; try --backbone vit_base_patch16_224")
    if not all(is_plain(block) for block in model.blocks):
        raise ValueError(f"mp3 needs plain attention, {name} has another; try --backbone vit_base_patch16_224")
    if isinstance(model.pos_embed, nn.Parameter):
        with torch.no_grad():
            model.pos_embed.zero_()
        model.pos_embed.requires_grad_(False)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder(
        "vit_tiny_patch16_224",
        image_size=32,
        patch_size=4,
        embed_dim=64,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="avg",
    )
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"mp3": on_the_world(mp3(at), peak=2e-3)}
