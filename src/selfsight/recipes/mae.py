r"""The recipe of MAE (He et al., 2022, arXiv 2111.06377). The method: ``selfsight.methods.mae``.

Hide three quarters of an image's patches and predict their normalised pixels from the rest:
:math:`L = \frac1{|M|} \sum_{i \in M} \frac1p \lVert \hat x_i - t_i \rVert^2`.

**Large images**: the official README's (83.6 % fine-tuned on ImageNet with ViT-B/16 after 1600 epochs): AdamW with
betas 0.9 and 0.95, 1.5e-4 x batch / 256 after a warm-up of 40 epochs, a cosine to 0, decay 0.05, batch 4096, 800
epochs, crops of (0.2, 1), a decoder of 8 blocks of width 512. The command line's own defaults (1e-3, no normalised
targets) are not what any published model was trained with.

**Small images** (up to 96 px): solo-learn's CIFAR-10 settings: 2e-4 x batch / 256 after a warm-up of 10 epochs from
3e-5, batch 256, 1000 epochs, crops of (0.08, 1), patches of 4 pixels. Its encoder is a ViT-S with MAE's full decoder.
The default here is a ViT-Tiny, which gets a decoder of its own width and 4 blocks, as IcarusWizard/MAE gives it; a
decoder of 512 would cost several times the encoder.

**Differences**: an encoder that was trained before keeps its weights and positions, and trains both, unless the
positions are MAE's own. A new one begins
as MAE's: Xavier-uniform, fixed sine-cosine positions, class token N(0, 0.02). The patches that stay are rounded
down after a product of floats, as in the code: of 100 at a ratio of 0.9 nine stay.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.optim import AdamW

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import TokenEncoder
from selfsight.methods.mae import MAE
from selfsight.parts.decoders import MaskedDecoder, xavier_
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import masked_view

CARDS = {
    "mae": {
        "family": "masked",
        "title": "MAE",
        "year": 2022,
        "arxiv": "2111.06377",
        "fact": "Predict the pixels of three quarters of an image from the rest.",
        "encoder": "vit_base_patch16_224",
        "small_encoder": "vit_tiny_patch16_224",
        "small_options": {"patch_size": 4},
        "needs": "tokens",
    }
}


def mae(
    at: Setting,
    *,
    mask_ratio: float = 0.75,
    normalise_target: bool = True,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
) -> Recipe[MaskedImages]:
    """MAE: predict the pixels of hidden patches.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of patches that are hidden.
    normalise_target
        Predict each patch's pixels normalised by their own mean and deviation.
    decoder_width
        Width of the decoder, 32 for each head. Default: 512, for small images the encoder's.
    decoder_depth
        Blocks of the decoder. Default: 8, for small images 4.
    """
    positive(decoder_width=decoder_width, decoder_depth=decoder_depth)
    encoder = at.encoder
    if not isinstance(encoder, TokenEncoder):
        raise ValueError(f"mae needs a vision transformer, not {_name(encoder)}; try --backbone vit_base_patch16_224")
    if at.image_size % encoder.patch:
        raise ValueError(f"patch {encoder.patch} does not divide an image of {at.image_size} px; choose another size")
    fresh_(encoder, at.image_size)
    grid = at.image_size // encoder.patch
    width = decoder_width or (encoder.width if at.small else 512)
    decoder = MaskedDecoder(
        encoder.width,
        encoder.patch**2 * at.channels,
        (grid, grid),
        width=width,
        depth=decoder_depth or (4 if at.small else 8),
        heads=max(width // 32, 1),
    )
    batch = at.batch_size or (256 if at.small else 4096)
    if at.small:
        lr = warmup_cosine(2e-4 * batch / 256, warmup_epochs=10, start=3e-5)
    else:
        lr = warmup_cosine(1.5e-4 * batch / 256, warmup_epochs=40)
    main = OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.95)), lr=lr, weight_decay=constant(0.05), groups=skip_vectors
    )
    view = augment.mae(at.image_size, scale=(0.08, 1.0)) if at.small else augment.mae(at.image_size)
    return Recipe(
        method=MAE(encoder, decoder, normalise_target=normalise_target),
        views=masked_view(view, patch=encoder.patch, ratio=mask_ratio),
        optimisers={"main": main},
        epochs=at.epochs or (1000 if at.small else 800),
        batch_size=batch,
    )


def fresh_(encoder: TokenEncoder, image_size: int) -> None:
    """MAE's start: Xavier weights, fixed positions, a small class token; nothing where the encoder was trained before.

    Its norms tell: a new one's have no bias.
    """
    model: Any = getattr(encoder, "model", encoder)
    trained = any(bool(m.bias.any()) for m in model.modules() if isinstance(m, nn.LayerNorm))
    positions = getattr(model, "pos_embed", None)
    grid = image_size // encoder.patch
    if trained and not isinstance(positions, nn.Parameter):
        return
    if not isinstance(positions, nn.Parameter) or positions.ndim != 3 or positions.shape[1] < grid * grid:
        raise ValueError(f"mae needs a transformer with one position for each patch; {_name(encoder)} has none")
    tokens = positions.shape[1] - grid * grid  # class and register tokens come first and have no position
    table = torch.cat([torch.zeros(tokens, positions.shape[2]), sincos_2d(positions.shape[2], grid, grid)])
    if trained:  # by MAE itself, if its positions are these
        positions.requires_grad_(not torch.equal(positions[0], table.to(positions)))
        return
    xavier_(model)
    with torch.no_grad():
        positions.copy_(table)
    positions.requires_grad_(False)
    if isinstance(getattr(model, "cls_token", None), nn.Parameter):
        nn.init.normal_(cast(nn.Parameter, model.cls_token), std=0.02)


def _name(encoder: object) -> str:
    return getattr(encoder, "name", type(encoder).__name__)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=2)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"mae": on_the_world(mae(at, decoder_depth=1), peak=2e-3)}
