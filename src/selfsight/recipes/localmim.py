r"""The recipes of LocalMIM (Wang et al., 2023, arXiv 2303.05251), with ViT and with Swin. The method:
``selfsight.methods.localmim``.

Hide three quarters of an image; low layers of the encoder predict the rest finely, high ones coarsely:
:math:`L = \sum_k \sum_i M^{(k)}_i \frac1d \lVert \hat y^{(k)}_i - y^{(k)}_i \rVert^2 / \sum_i M^{(k)}_i`.

**Large images**: Haoqing-Wang/LocalMIM 314a6e5, READMEs and defaults. AdamW with betas 0.9 and 0.95 and decay 0.05, a
warm-up of 40 epochs and a cosine, batch 2048, crops of (0.2, 1). ViT-B (84.0 % fine-tuned): 2e-4 x batch / 256 to 1e-6,
1600 epochs, after blocks 2, 4, 10 and 12 cells of 4, 8, 16 and 32 px with 9 bins, decoders of one block of 256 with 8
heads. Swin-B (84.1 %): 1e-4 x batch / 256 to 0, 400 epochs, after each merging and the last stage cells of 8, 16, 32
and 32 px with 18 bins and shifted gradients, decoders of 64, 128, 128 and 128 with 4 heads. Position biases of Swin do
not decay. With pixels as target its published model reaches 84.0 %.

**Small images** (up to 96 px): no paper's. MAE's batch and crops there (256, (0.08, 1)), else as above. Patches of 4 px
(ViT) leave out the finest layer, whose cells would be a single pixel; Swin has patches of 2 px and three stages, so
that an image of 32 px has 16 units to hide. Decoders are no wider than the ViT.

**Differences**: a transformer of fewer than seven blocks is tapped at equal distances. Swin's norms add timm's 1e-5, in
the code 1e-6, and its windows follow the size, so that they divide the map. The code hides 37 of Swin's 49 units, as
MAE's rule of rounding does here. A ViT whose patches have no quarter of whole pixels (14 px) leaves the finest layer
out too.
"""

from functools import partial
from typing import Any

from torch.optim import AdamW

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import ScaledEncoder
from selfsight.encoders.swin import Swin
from selfsight.methods.localmim import LocalMIM, Target
from selfsight.parts.decoders import MaskedDecoder, xavier_
from selfsight.parts.local_decoder import LocalDecoder
from selfsight.recipes.mae import fresh_, whole_patches
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.recipes.simmim import fit_, skip_position_biases
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import masked_view

CARDS = {
    "localmim": {
        "family": "masked",
        "title": "LocalMIM",
        "year": 2023,
        "arxiv": "2303.05251",
        "fact": "Low layers predict the hidden part finely, high ones coarsely.",
        "encoder": "vit_base_patch16_224",
        "small_encoder": "vit_tiny_patch16_224",
        "small_options": {"patch_size": 4},
        "needs": "tokens",
    },
    "localmim_swin": {
        "family": "masked",
        "title": "LocalMIM, Swin",
        "year": 2023,
        "arxiv": "2303.05251",
        "fact": "LocalMIM with an encoder of shifted windows.",
        "encoder": "swin_base_patch4_window7_224",
        "options": {"drop_path_rate": 0.0},
        "small_encoder": "swin_tiny_patch4_window7_224",
        "small_options": {
            "patch_size": 2,
            "depths": (2, 2, 6),
            "num_heads": (3, 6, 12),
            "drop_path_rate": 0.0,
        },
        "needs": "windows",
    },
}


def localmim(
    at: Setting,
    *,
    mask_ratio: float = 0.75,
    target: Target = "hog",
    normalise_target: bool = True,
    bins: int = 9,
    hog_offset: bool = False,
    decoder_width: int | None = None,
) -> Recipe[MaskedImages]:
    """LocalMIM: low layers predict the hidden part finely, high ones coarsely.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of patches that are hidden.
    target
        What is predicted: ``hog``, histograms of oriented gradients, or ``pixels``.
    normalise_target
        Predict each cell's pixels normalised by their own mean and deviation. Histograms always are.
    bins
        Directions of a histogram.
    hog_offset
        Shift the gradients of histograms by random numbers, as the official code does for all models but ViT-B.
    decoder_width
        Width of each decoder, 32 for each head. Default: 256, for small images the encoder's up to there.
    """
    encoder = at.encoder
    if not isinstance(encoder, ScaledEncoder) or isinstance(encoder, Swin):
        hint = "give localmim_swin" if isinstance(encoder, Swin) else "try --backbone vit_base_patch16_224"
        raise ValueError(f"localmim needs a vision transformer, not {_name(encoder)}; {hint}")
    positive(bins=bins, decoder_width=decoder_width)
    side = whole_patches(at, encoder.unit)
    fresh_(encoder, side, "localmim", trained=at.begun)
    scales = [s for s in (4, 2, 1, 0.5) if encoder.unit >= 2 * s and encoder.unit % s == 0]  # cells of whole pixels
    layers = _tapped(encoder.depth, len(scales))
    cells = [round(encoder.unit / s) for s in scales]
    if at.image_size % cells[-1]:
        raise ValueError(f"cells of {cells[-1]} px do not divide an image of {at.image_size} px; choose another size")
    width = decoder_width or (min(encoder.width, 256) if at.small else 256)
    decoders = [
        LocalDecoder(
            encoder.layer_width(layer),
            _outputs(at, target, bins, cell),
            side,
            scale=scale,
            width=width,
            heads=max(width // 32, 1),
        )
        for layer, scale, cell in zip(layers, scales, cells, strict=True)
    ]
    method = LocalMIM(
        encoder,
        decoders,
        layers=layers,
        cells=cells,
        target=target,
        normalise_target=normalise_target,
        bins=bins,
        offset=hog_offset,
    )
    batch = at.batch_size or (256 if at.small else 2048)
    return _recipe(at, method, mask_ratio, rate=2e-4 * batch / 256, end=1e-6, epochs=1600, batch=batch)


def localmim_swin(
    at: Setting,
    *,
    mask_ratio: float = 0.75,
    target: Target = "hog",
    normalise_target: bool = True,
    bins: int = 18,
    hog_offset: bool = True,
    decoder_width: int = 128,
) -> Recipe[MaskedImages]:
    """LocalMIM with Swin, whose layers are its stages.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of units (the last stage's patches) that are hidden.
    target
        What is predicted: ``hog``, histograms of oriented gradients, or ``pixels``.
    normalise_target
        Predict each cell's pixels normalised by their own mean and deviation. Histograms always are.
    bins
        Directions of a histogram.
    hog_offset
        Shift the gradients of histograms by random numbers, as the official code does.
    decoder_width
        Width of each decoder, of the finest one half of it; four heads.
    """
    encoder = at.encoder
    if not isinstance(encoder, Swin):
        raise ValueError(
            f"localmim_swin needs a Swin, not {_name(encoder)}; try --backbone swin_base_patch4_window7_224"
        )
    positive(bins=bins, decoder_width=decoder_width)
    fit_(encoder, at.image_size)
    if not at.begun:
        xavier_(encoder)
    layers = list(range(1, encoder.depth + 1))
    cells = [encoder.layer_stride(layer) for layer in layers]
    decoders = [
        MaskedDecoder(
            encoder.layer_width(layer),
            _outputs(at, target, bins, cell),
            (at.image_size // cell, at.image_size // cell),
            width=decoder_width if k else decoder_width // 2,
            depth=1,
            heads=4,
        )
        for k, (layer, cell) in enumerate(zip(layers, cells, strict=True))
    ]
    method = LocalMIM(
        encoder,
        decoders,
        layers=layers,
        cells=cells,
        target=target,
        normalise_target=normalise_target,
        bins=bins,
        offset=hog_offset,
    )
    batch = at.batch_size or (256 if at.small else 2048)
    return _recipe(at, method, mask_ratio, rate=1e-4 * batch / 256, end=0.0, epochs=400, batch=batch)


def _recipe(
    at: Setting, method: LocalMIM, ratio: float, *, rate: float, end: float, epochs: int, batch: int
) -> Recipe[MaskedImages]:
    main = OptimiserSpec(
        build=partial(AdamW, betas=(0.9, 0.95)),
        lr=warmup_cosine(rate, warmup_epochs=40, end=end),
        weight_decay=constant(0.05),
        groups=skip_position_biases if isinstance(method.encoder, Swin) else skip_vectors,
    )
    view = augment.mae(at.image_size, scale=(0.08, 1.0)) if at.small else augment.mae(at.image_size)
    return Recipe(
        method=method,
        views=masked_view(view, patch=method.encoder.unit, ratio=ratio),
        optimisers={"main": main},
        epochs=at.epochs or epochs,
        batch_size=batch,
    )


def _tapped(depth: int, count: int) -> list[int]:
    """The blocks after which layers are tapped, the last ``count`` of 2, 4, depth - 2 and depth."""
    if depth >= 7:
        return [2, 4, depth - 2, depth][-count:]
    if depth < count:
        raise ValueError(f"localmim taps {count} blocks, but the encoder has {depth}; choose a deeper one")
    return [-(-depth * (k + 1) // count) for k in range(count)]


def _outputs(at: Setting, target: Target, bins: int, cell: int) -> int:
    return at.channels * (bins if target == "hog" else cell * cell)


def _name(encoder: object) -> str:
    return getattr(encoder, "name", type(encoder).__name__)


def tiny() -> dict[str, Recipe]:
    """Both at a size that a test can train.

    Pixels are predicted as they are, and what is hidden as a whole has 4 px: from histograms, normalised pixels or
    units of 8 px less was learnt within as many updates. The ViT's feature is the patches' mean, as the paper
    fine-tunes it.
    """
    options: Any = {"image_size": 32, "samples": 1000, "epochs": 5, "batch_size": 64}
    pixels: Any = {"target": "pixels", "normalise_target": False}
    small = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2, "global_pool": "avg"}
    vit = build_encoder("vit_tiny_patch16_224", image_size=32, **small)
    plain = localmim(Setting(encoder=vit, **options), **pixels)
    windows: Any = {"patch_size": 2, "embed_dim": 32, "depths": (1, 2), "num_heads": (2, 4), "drop_path_rate": 0.0}
    swin = build_encoder("swin_tiny_patch4_window7_224", image_size=32, **windows)
    windowed = localmim_swin(Setting(encoder=swin, **options), decoder_width=64, **pixels)
    return {"localmim": on_the_world(plain, peak=2e-3), "localmim_swin": on_the_world(windowed, peak=4e-3)}
