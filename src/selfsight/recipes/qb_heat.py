r"""The recipe of QB-Heat (Chen et al., 2022, arXiv 2211.13228). The method: ``selfsight.methods.qb_heat``.

See a quarter of an image, carry its features on by linear maps and predict the pixels of the other three:
:math:`z(x \pm w, y) = (I + P_\pm) z(x, y)` and
:math:`L = \frac1{|M|} \sum_{i \in M} \frac1p \lVert \hat x_i - t_i \rVert^2`.

**Large images**: the paper's abstract reports a Mobile-Former of 285 million FLOPs, 65.6 % on ImageNet under a probe
of one transformer block (MoCo v2: 52.9 %), and no settings that could be checked, nor code. So these are MAE's, whose
loss it shares: AdamW with betas 0.9 and 0.95, 1.5e-4 x batch / 256 after a warm-up of 40 epochs, a cosine to 0, decay
0.05, batch 4096, crops of (0.2, 1), for 300 epochs; a decoder of 4 blocks of width 512.

**Small images** (up to 96 px): those of MAE's small column: 2e-4 x batch / 256 after a warm-up of 10 epochs from 3e-5,
batch 256, 1000 epochs, crops of (0.08, 1); a decoder of 2 blocks of width 256.

**Differences**: a patch is as large as the encoder's map wants it: a quarter of 112 px has 4 places along a side with a
stride of 32, so that the image has 8 and its patches 28 px. Batch norm is over all processes.
A ViT's class token, which no loss reads, is not the feature: the mean of the patches is.
"""

from selfsight.batches import QuarterSeen
from selfsight.encoders.build import build_encoder
from selfsight.encoders.dense import dense_shape
from selfsight.encoders.pooling import pool_patches_
from selfsight.methods.qb_heat import QBHeat
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.extrapolation import Extrapolation, MapDecoder
from selfsight.recipes.mae import optimised_as_mae
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Recipe, Setting, positive
from selfsight.views.quarters import quarter_view

CARDS = {
    "qb_heat": {
        "family": "masked",
        "title": "QB-Heat",
        "year": 2022,
        "arxiv": "2211.13228",
        "fact": "Carry a quarter's features on by linear maps and predict the rest of the image.",
        "encoder": "resnet50",
    }
}


def qb_heat(
    at: Setting,
    *,
    own_diagonal: bool = False,
    normalise_target: bool = True,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
) -> Recipe[QuarterSeen]:
    """QB-Heat: carry a quarter's features on by linear maps and predict the rest of the image.

    Parameters
    ----------
    at
        What the run knows.
    own_diagonal
        Give the quarter opposite matrices of its own, instead of going across and down.
    normalise_target
        Predict each patch's pixels normalised by their own mean and deviation.
    decoder_width
        Width of the decoder, 32 for each head. Default: 512, for small images 256.
    decoder_depth
        Blocks of the decoder. Default: 4, for small images 2.
    """
    positive(decoder_width=decoder_width, decoder_depth=decoder_depth)
    if at.image_size % 2:
        raise ValueError(f"an image of {at.image_size} px has no quarters of whole pixels; choose an even size")
    pool_patches_(at.encoder)
    try:
        encoded, half = dense_shape(at.encoder, at.image_size // 2, at.channels)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"qb_heat shows the encoder {at.image_size // 2} px, which it does not take; try --backbone resnet50"
        ) from error
    side = 2 * half
    if at.image_size % side:
        raise ValueError(
            f"the encoder gives a quarter of {at.image_size // 2} px {half} places along a side, which make no whole "
            "patches; choose another --image-size"
        )
    patch = at.image_size // side
    width = decoder_width or (256 if at.small else 512)
    decoder = MapDecoder(
        encoded,
        patch**2 * at.channels,
        (side, side),
        width=width,
        depth=decoder_depth or (2 if at.small else 4),
        heads=max(width // 32, 1),
    )
    extrapolation = Extrapolation(encoded, own_diagonal=own_diagonal)
    method = QBHeat(at.encoder, extrapolation, decoder, side=side, patch=patch, normalise_target=normalise_target)
    set_scope_(method, "all")
    return optimised_as_mae(at, method, quarter_view, epochs=300)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train.

    Of 32 px a quarter would leave 2 x 2 places, of 64 px it leaves 4 x 4. The margin is thin: after 320 updates +5.4
    points of linear accuracy were measured from the seed of the test, +3.6 and -0.3 from two others. At 32 px, with
    normalised patches and smaller crops, it was between -1.1 and +2.0, and fine-tuning gained no four points either.
    """
    encoder = build_encoder("tiny_cnn", image_size=64)
    at = Setting(encoder=encoder, image_size=64, samples=1000, epochs=5, batch_size=64)
    recipe = qb_heat(at, normalise_target=False, decoder_width=64, decoder_depth=1)
    return {"qb_heat": on_the_world(recipe, peak=4e-3, least=0.9)}
