r"""The recipe of Colorization (Zhang et al., 2016, arXiv 1603.08511). The method: ``selfsight.methods.colorization``.

Say the colour of every place of an image, among 313 bins, from its lightness:
:math:`L = - \frac1{HW} \sum_{h,w} v(Z_{hw}) \sum_q Z_{hwq} \log \hat Z_{hwq}`.

**Large images**: the official solver: Adam with betas 0.9 and 0.99, 3e-5, a tenth of it from 225,000 of at most 500,000
updates on, decay 1e-3, batch 40, which are 16 epochs of ImageNet. Crops of 176 from 256 px, mirrored or not: at other
sizes the same share of the area, so that ``--image-size 176`` is the paper's. Colours are asked for at every fourth
pixel.

**Small images** (up to 96 px): the paper has none. These are our choice: 3e-4 at batch 128 with a tenth of it for the
last quarter, decay 1e-4, 200 epochs, crops of the paper's share of the area or more, with a grid of every fourth pixel
as well.

**Differences**: decay is added to the gradient, as Caffe's Adam has it. The paper's rates fall in two steps, by a third
each; the code's are taken. The rate scales with the batch where another one is asked for. The paper's networks are not
built. Any encoder for colour images takes lightness three times over; what is evaluated or fine-tuned sees lightness
too. A ViT's class token, which no loss reads, is not the feature: the mean of the patches is.
"""

from functools import partial

from torch.optim import Adam

from selfsight.batches import ColouredImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.pooling import pool_patches_
from selfsight.methods.colorization import Colorization
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.colours import ColourDecoder, bins
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, steps
from selfsight.views.coloured import coloured
from selfsight.views.view import View

CARDS = {
    "colorization": {
        "family": "pretext",
        "title": "Colorization",
        "year": 2016,
        "arxiv": "1603.08511",
        "fact": "Say the colour of every place of an image from its lightness.",
        "encoder": "resnet50",
    }
}

_CROP = (176 / 256) ** 2


def colorization(
    at: Setting,
    *,
    neighbours: int = 5,
    sigma: float = 5.0,
    mix: float = 0.5,
    temperature: float = 0.38,
    grid: int = 4,
    decoder_width: int = 256,
) -> Recipe[ColouredImages]:
    """Colorization: say the colour of every place of an image from its lightness.

    Parameters
    ----------
    at
        What the run knows.
    neighbours
        Bins that the true colour is shared among; 10 is the official code's.
    sigma
        Deviation of that sharing, in units of a and b.
    mix
        Uniform share of the prior that rare colours are weighed by; 1 weighs all alike.
    temperature
        Of the annealed mean that pictures show.
    grid
        Colours are asked for at every so-manieth pixel along each axis.
    decoder_width
        Channels of the decoder.
    """
    positive(neighbours=neighbours, sigma=sigma, temperature=temperature, grid=grid, decoder_width=decoder_width)
    if not 0 < mix <= 1:
        raise ValueError(f"--mix is {mix:g}; it is the uniform share of the prior, above 0 and up to 1")
    if neighbours > len(bins()):
        raise ValueError(f"--neighbours is {neighbours}, but there are {len(bins())} bins")
    if at.channels != 3:
        raise ValueError(f"colorization needs red, green and blue, not {at.channels} channels; use --channels 3")
    batch = at.batch_size or (128 if at.small else 40)
    pool_patches_(at.encoder)
    decoder = ColourDecoder(at.encoder.width, at.encoder.stride, len(bins()), width=decoder_width, grid=grid)
    method = Colorization(
        at.encoder, decoder, stride=grid, neighbours=neighbours, sigma=sigma, mix=mix, temperature=temperature
    )
    set_scope_(method, "rank")
    if at.small:
        lr, decay = steps(3e-4 * batch / 128, at=(0.75,), factor=0.1), constant(1e-4)
        view = View(size=at.image_size, scale=(_CROP, 1.0))
    else:
        lr, decay = steps(3e-5 * batch / 40, at=(0.45,), factor=0.1), constant(1e-3)
        view = View(size=at.image_size, scale=(_CROP, _CROP), ratio=(1.0, 1.0))
    main = OptimiserSpec(build=partial(Adam, betas=(0.9, 0.99)), lr=lr, weight_decay=decay, groups=decay_all)
    return Recipe(
        method=method,
        views=coloured(view, stride=grid),
        optimisers={"main": main},
        epochs=at.epochs or (200 if at.small else 16),
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"colorization": on_the_world(colorization(at, decoder_width=32), peak=2e-3)}
