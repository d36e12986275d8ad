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

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.optim import AdamW

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import Encoder, TokenEncoder
from selfsight.method import Method
from selfsight.methods.mae import MAE
from selfsight.parts.decoders import MaskedDecoder, xavier_
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import B, OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import masked_view
from selfsight.views.protocol import Views
from selfsight.views.view import View

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
    encoder = token_encoder(at, "mae")
    decoder = decoder_for(at, encoder.width, encoder.patch, width=decoder_width, depth=decoder_depth)
    method = MAE(encoder, decoder, normalise_target=normalise_target)
    return trained_as_mae(at, method, patch=encoder.patch, mask_ratio=mask_ratio)


def token_encoder(at: Setting, method: str) -> TokenEncoder:
    """The setting's transformer, begun as MAE's; refuses what is none, and patches that do not fit."""
    encoder = at.encoder
    if not isinstance(encoder, TokenEncoder):
        name = _name(encoder)
        raise ValueError(f"{method} needs a vision transformer, not {name}; try --backbone vit_base_patch16_224")
    fresh_(encoder, whole_patches(at, encoder.patch), method, trained=at.begun)
    return encoder


def whole_patches(at: Setting, patch: int) -> int:
    """How many patches make a side of the image."""
    if at.image_size % patch:
        raise ValueError(f"patch {patch} does not divide an image of {at.image_size} px; choose another size")
    return at.image_size // patch


def decoder_for(
    at: Setting, encoded: int, patch: int, *, width: int | None, depth: int | None, usual: tuple[int, int] = (8, 4)
) -> MaskedDecoder:
    """A decoder of pixels: 512 wide, for small images as wide as the encoder's tokens.

    ``usual`` are its blocks for large and for small images.
    """
    positive(decoder_width=width, decoder_depth=depth)
    grid = at.image_size // patch
    width = width or (encoded if at.small else 512)
    return MaskedDecoder(
        encoded,
        patch**2 * at.channels,
        (grid, grid),
        width=width,
        depth=depth or usual[at.small],
        heads=max(width // 32, 1),
    )


def trained_as_mae(
    at: Setting, method: Method[MaskedImages], *, patch: int, mask_ratio: float, epochs: int = 800, batch: int = 4096
) -> Recipe[MaskedImages]:
    """The method with MAE's views and optimiser; ``epochs`` and ``batch`` are those for large images."""
    views = partial(masked_view, patch=patch, ratio=mask_ratio)
    return optimised_as_mae(at, method, views, epochs=epochs, batch=batch)


def optimised_as_mae(
    at: Setting, method: Method[B], views: Callable[[View], Views[B]], *, epochs: int = 800, batch: int = 4096
) -> Recipe[B]:
    """The same with other ``views``, which are made of MAE's crop."""
    batch = at.batch_size or (256 if at.small else batch)
    if at.small:
        lr = warmup_cosine(2e-4 * batch / 256, warmup_epochs=10, start=3e-5)
    else:
        lr = warmup_cosine(1.5e-4 * batch / 256, warmup_epochs=40)
    main = OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.95)), lr=lr, weight_decay=constant(0.05), groups=skip_vectors
    )
    view = augment.mae(at.image_size, scale=(0.08, 1.0)) if at.small else augment.mae(at.image_size)
    return Recipe(
        method=method,
        views=views(view),
        optimisers={"main": main},
        epochs=at.epochs or (1000 if at.small else epochs),
        batch_size=batch,
    )


def fresh_(
    encoder: Encoder,
    grid: int,
    method: str = "mae",
    *,
    trained: bool,
    start_: Callable[[nn.Module], object] | None = xavier_,
) -> None:
    """MAE's start: Xavier weights, fixed positions, a small class token; no weights where the encoder was ``trained``.

    ``grid`` are the patches of a side; ``start_`` draws the weights, unless they are as they should be.
    """
    model: Any = getattr(encoder, "model", encoder)
    positions = getattr(model, "pos_embed", None)
    if trained and not isinstance(positions, nn.Parameter):
        return
    if not isinstance(positions, nn.Parameter) or positions.ndim != 3 or positions.shape[1] < grid * grid:
        raise ValueError(f"{method} needs a transformer with one position for each patch; {_name(encoder)} has none")
    tokens = positions.shape[1] - grid * grid  # class and register tokens come first and have no position
    table = torch.cat([torch.zeros(tokens, positions.shape[2]), sincos_2d(positions.shape[2], grid, grid)])
    if trained:  # by MAE itself, if its positions are these
        positions.requires_grad_(not torch.equal(positions[0], table.to(positions)))
        return
    if start_ is not None:
        start_(model)
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
