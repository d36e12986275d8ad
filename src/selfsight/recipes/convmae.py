r"""The recipe of ConvMAE (Gao et al., 2022, arXiv 2205.03892). The method: ``selfsight.methods.convmae``.

MAE with convolutional stages in front of the transformer, which read zeros where the image is hidden:
:math:`L = \frac1{|M|} \sum_{i \in M} \frac1p \lVert \hat x_i - t_i \rVert^2`.

**Large images**: the official instructions' (``PRETRAIN.md``; 85.0 % fine-tuned and 70.9 % linear on ImageNet with the
base model after 1600 epochs): 1600 epochs at a batch of 3072, and else MAE's (``selfsight.recipes.mae``): 1.5e-4 x
batch / 256 after a warm-up of 40 epochs, decay 0.05, betas 0.9 and 0.95, three quarters of the 14 x 14 places hidden, a
decoder of 8 blocks of width 512. The code's own 400 epochs, rate of 1e-3 and plain targets are what MAE's left over.

**Small images** (up to 96 px): the paper has none. MAE's settings here, with patches of 4 px whose grids are in the
paper's ratio of 4 : 2 : 1, depthwise convolutions of 3x3, and an encoder of the base's proportions, as wide as MAE's
ViT-Tiny (``selfsight.encoders.convvit``).
"""

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import StagedEncoder
from selfsight.methods.convmae import ConvMAE
from selfsight.parts.fusion import StageFusion
from selfsight.recipes.mae import decoder_for, fresh_, trained_as_mae, whole_patches
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Recipe, Setting, positive

CARDS = {
    "convmae": {
        "family": "masked",
        "title": "ConvMAE",
        "year": 2022,
        "arxiv": "2205.03892",
        "fact": "MAE behind convolutional stages that never read hidden places.",
        "encoder": "convvit_base",
        "small_encoder": "convvit_tiny",
        "needs": "stages",
    }
}


def convmae(
    at: Setting,
    *,
    mask_ratio: float = 0.75,
    normalise_target: bool = True,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
) -> Recipe[MaskedImages]:
    """ConvMAE: MAE with masked convolutions.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of the last stage's places that are hidden, at every scale.
    normalise_target
        Predict each patch's pixels normalised by their own mean and deviation.
    decoder_width
        Width of the decoder, 32 for each head. Default: 512, for small images the encoder's.
    decoder_depth
        Blocks of the decoder. Default: 8, for small images 4.
    """
    positive(decoder_width=decoder_width, decoder_depth=decoder_depth)
    encoder = at.encoder
    if not isinstance(encoder, StagedEncoder):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(f"convmae needs ConvMAE's own encoder, not {name}; try --backbone convvit_base")
    side = whole_patches(at, encoder.patch)
    fresh_(encoder, side, "convmae", trained=at.begun, start_=None)  # but for positions it has MAE's start
    method = ConvMAE(
        encoder,
        StageFusion(encoder.map_widths, encoder.width),
        decoder_for(at, encoder.width, encoder.patch, width=decoder_width, depth=decoder_depth),
        normalise_target=normalise_target,
    )
    return trained_as_mae(at, method, patch=encoder.patch, mask_ratio=mask_ratio, epochs=1600, batch=3072)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train.

    Patches of 8 px, since a stage at the image's resolution takes most of the time, and half of their 16 places hidden.
    Pixels are predicted as they are: many patches of the embedded world are one colour, of which normalising leaves
    noise.
    """
    small = {"patch_size": 8, "widths": (32, 48, 64), "depths": (1, 1, 2), "heads": 2}
    encoder = build_encoder("convvit_tiny", image_size=32, **small)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"convmae": on_the_world(convmae(at, decoder_depth=1, mask_ratio=0.5, normalise_target=False), peak=2e-3)}
