r"""The recipe of BEiT (Bao et al., 2022, arXiv 2106.08254). The method: ``selfsight.methods.beit``.

Hide blocks of patches and predict the codes that a frozen tokenizer gives them:
:math:`L = -\frac1{|M|} \sum_{(b,i) \in M} \log p(z_{b,i} \mid \tilde x_b)`.

**Large images**: the official README's for ImageNet-1k (microsoft/unilm, ``beit``; ViT-B/16, 83.2 % fine-tuned):
AdamW with betas 0.9 and 0.999, 1.5e-3 at a batch of 2048 (not scaled by the batch), a warm-up of 10 epochs, a cosine to
1e-5, decay 0.05 but for biases, norms, layer scales and the class token, gradients clipped to 3, 800 epochs; at most 75
of 196 patches hidden in blocks of at least 16; layer scale 0.1, drop path 0.1, one table of relative positions for all
blocks; crops of (0.08, 1), colour jitter of 0.4 and normalisation by ImageNet's numbers. The tokenizer sees the same
crop at so many pixels that it has a place for each patch: with DALL-E's 112.

**Small images** (up to 96 px): no published recipe; choices of this library. Patches of 4 pixels and a transformer of
ViT-Tiny's width, 26 of 64 patches hidden in blocks of at least 4, batch 256, 1e-3, 800 epochs; the rest as above.

**Differences**: the jitter is applied to the crop, where the code jitters the image and crops then; the tokenizer's
picture is resized bicubically, where the code takes Lanczos's filter. A plain vision
transformer will do in BEiT's place; its class token, which no loss reads, is not the feature: the mean of the patches
is.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from selfsight.batches import MaskedPictures
from selfsight.encoders.beit import begin_, cut_normal_
from selfsight.encoders.build import build_encoder
from selfsight.encoders.pooling import pool_patches_
from selfsight.encoders.protocol import MaskableEncoder
from selfsight.loading import load_dvae, load_tokenizer
from selfsight.methods.beit import BEiT
from selfsight.parts.stochastic_depth import drop_path_
from selfsight.parts.tokenizers import CodeHead, CodeLogits, Painter, Tokenizer
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Group, OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pictured import masked_pictures
from selfsight.views.render import normalise_
from selfsight.views.view import Normalise

CARDS = {
    "beit": {
        "family": "masked",
        "title": "BEiT",
        "year": 2021,
        "arxiv": "2106.08254",
        "fact": "Predict the codes that a tokenizer gives to hidden blocks of patches.",
        "encoder": "beit_base_patch16_224",
        "options": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
        "small_encoder": "beit_base_patch16_224",
        "small_options": {
            "patch_size": 4,
            "embed_dim": 192,
            "num_heads": 3,
            "use_rel_pos_bias": False,
            "use_shared_rel_pos_bias": True,
        },
        "needs": "tokenizer",
    }
}
_HOW = "train one by 'selfsight pretrain dvae --data IMAGES --out runs/dvae' and give --tokenizer runs/dvae"


def beit(
    at: Setting,
    *,
    tokenizer: str | None = None,
    masked: int | None = None,
    smallest: int | None = None,
    drop_path: float = 0.1,
) -> Recipe[MaskedPictures]:
    """BEiT: predict the codes of hidden blocks of patches.

    Parameters
    ----------
    at
        What the run knows.
    tokenizer
        A run of `dvae`, or a file with the state dict of DALL-E's published encoder.
    masked
        Patches to hide at most. Default: 75 of 196, for small images 26 of 64, and in proportion.
    smallest
        Patches of the smallest block. Default: 16 where there are 14 patches a side, the square of a third of these.
    drop_path
        Stochastic depth.
    """
    positive(masked=masked, smallest=smallest)
    told = None
    if at.training:
        if tokenizer is None:
            raise ValueError(f"beit needs a tokenizer; {_HOW}")
        if not Path(tokenizer).exists():
            raise ValueError(f"there is no tokenizer {tokenizer}; {_HOW}")
        told = load_tokenizer(tokenizer, grid=_grid(at), channels=at.channels)
    painter = None if tokenizer is None or Path(tokenizer).is_file() else partial(_painter, tokenizer, at.channels)
    return wired(at, told, masked=masked, smallest=smallest, drop_path=drop_path, painter=painter)


def _painter(tokenizer: str, channels: int, normalise: Normalise | None) -> Painter:
    """Both halves of the autoencoder of a run of dvae, whose pictures are normalised as the encoder's are."""
    dvae = load_dvae(tokenizer, channels=channels)

    def paint(codes: Tensor) -> Tensor:
        picture = dvae.paint(codes)
        normalise_(picture.movedim(1, 0), normalise)
        return picture

    return Painter(dvae.tokenizer(), paint)


def wired(
    at: Setting,
    told: Tokenizer | None,
    *,
    masked: int | None = None,
    smallest: int | None = None,
    drop_path: float = 0.1,
    painter: Callable[[Normalise | None], Painter] | None = None,
) -> Recipe[MaskedPictures]:
    """The recipe with a tokenizer at hand."""
    grid, encoder = _grid(at), at.encoder
    assert isinstance(encoder, MaskableEncoder)
    pool_patches_(encoder)
    width = encoder.width
    view = augment.beit(at.image_size)
    method = BEiT(
        encoder,
        CodeLogits(width, told.codes if told else None),
        told,
        width=width,
        painter=painter and partial(painter, view.normalise),
    )
    fresh_(method, trained=at.begun)
    drop_path_(encoder, drop_path)
    share = 26 / 64 if at.small else 75 / 196
    views = masked_pictures(
        view,
        replace(view, size=grid * (told.factor if told else 8), normalise=None),
        patch=encoder.patch,
        budget=masked or max(round(share * grid**2), 1),
        smallest=smallest or max((grid // 3) ** 2, 1),
    )
    main = OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.999)),
        lr=warmup_cosine(1e-3 if at.small else 1.5e-3, warmup_epochs=10, end=1e-5),
        weight_decay=constant(0.05),
        groups=skip_vectors_and_class_token,
        clip=3.0,
    )
    return Recipe(
        method=method,
        views=views,
        optimisers={"main": main},
        epochs=at.epochs or 800,
        batch_size=at.batch_size or (256 if at.small else 2048),
    )


def skip_vectors_and_class_token(name: str, parameter: nn.Parameter) -> Group:
    """Vectors, class token and positions do not decay; mask token and relative positions do (``optim_factory.py``)."""
    if name.rsplit(".", 1)[-1] in ("cls_token", "pos_embed"):
        return Group(decay=False, adapt=False)
    return skip_vectors(name, parameter)


def _grid(at: Setting) -> int:
    encoder = at.encoder
    if not isinstance(encoder, MaskableEncoder) or encoder.stride != encoder.patch:  # Swin merges patches
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(
            f"beit needs a BEiT or plain vision transformer, which keeps its patches apart, not {name}; "
            "try --backbone beit_base_patch16_224"
        )
    return at.image_size // encoder.patch


def fresh_(method: BEiT, *, trained: bool) -> None:
    """BEiT's start, of what is the method's own and of the encoder, unless that was ``trained`` before."""
    cut_normal_(method.mask_token)
    cut_normal_(method.head.weight)
    nn.init.zeros_(method.head.bias)
    if not trained:
        begin_(method.encoder)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with a tokenizer that was never trained, always the same."""
    shared: dict[str, Any] = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    encoder = build_encoder(
        "beit_base_patch16_224", image_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=2, **shared
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        told = Tokenizer(build_encoder("dalle_nano", image_size=32), CodeHead(128, 64))
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"beit": on_the_world(wired(at, told, drop_path=0.0), peak=2e-3)}
