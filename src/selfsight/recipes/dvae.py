r"""The recipe of DALL-E's discrete autoencoder (Ramesh et al., 2021, arXiv 2102.12092). The method: ``methods.dvae``.

It trains a tokenizer for ``beit``:
:math:`L = -\ln f(x \mid \mu, b) + \frac{\beta}{P} \mathrm{KL}(q \,\|\, \mathrm{uniform})`.

**Large images**: the paper's, appendix A.2 (the code cannot train): 8192 codes, the published networks, batch 512,
AdamW with decay 1e-4, 1e-4 falling to 1.25e-6 along a cosine, weights averaged with 0.999, τ from 1 to 1/16, β from 0
to 6.6. Its 3,000,000 updates are 1200 epochs of ImageNet; the schedules end after 1,200,000 (the rate), 150,000 (τ) and
5,000 (β) of these, and here after the same shares of the training: 2/5, 1/20 and 1/600. Crops are
those of its listing 1: a square resized to between 9/8 and 12/8 of the target's size, and cut there, so that a view
shows 2/3 to 8/9 of the square's side (listing 2, with 1 to 9/8, is the transformer's).

**Small images** (up to 96 px): no published recipe; choices of this library. 512 codes, a map of a quarter of the
side, networks of half the width, batch 256, 200 epochs, 1e-3 falling to 1.25e-5. τ falls over three quarters of the
training, since it is short. β is the paper's, from the first epoch on: it decides how many codes are used. On the
world, 160 updates with 6.6 left 27 of 64 codes in use, with 2 eleven (one seed, ``tiny()``). Crops as above.

**Differences**: the resizing of the crops is bilinear, where the paper averages areas. The crop's area is drawn
uniformly, in the paper the side it is resized to. The paper never enlarges an image: one whose short side is less than
12/8 of the target's it cuts less of; here all are cut alike.
"""

from functools import partial

from torch.optim import AdamW

from selfsight.batches import SeededImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.dense import dense_shape
from selfsight.methods.dvae import DVAE
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.tokenizers import CodeHead, DalleDecoder
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, cosine
from selfsight.views.seeded import seeded_view
from selfsight.views.view import View

CARDS = {
    "dvae": {
        "family": "masked",
        "title": "dVAE",
        "year": 2021,
        "arxiv": "2102.12092",
        "fact": "Paints images from discrete codes: the tokenizer that BEiT needs.",
        "encoder": "dalle",
        "small_encoder": "dalle_small",
        "yields": "tokenizer",
    }
}


def dvae(
    at: Setting,
    *,
    codes: int | None = None,
    kl_weight: float = 6.6,
    end_temperature: float = 1 / 16,
    momentum: float = 0.999,
) -> Recipe[SeededImages]:
    """dVAE: a discrete autoencoder, whose codes are BEiT's targets.

    Parameters
    ----------
    at
        What the run knows.
    codes
        How many codes there are. Default: 8192, for small images 512.
    kl_weight
        Weight of the divergence of the codes from the uniform distribution, β, at its end.
    end_temperature
        The temperature τ of the relaxed choice at its end; it begins at 1.
    momentum
        How slowly the average of the weights, which is kept, follows.
    """
    positive(end_temperature=end_temperature)
    if codes is not None and codes < 2:
        raise ValueError(f"--codes must be at least 2, not {codes}")
    if kl_weight < 0:
        raise ValueError(f"--kl-weight must be 0 or greater, not {kl_weight:g}")
    if not 0 <= momentum < 1:
        raise ValueError(f"--momentum must be at least 0 and below 1, not {momentum:g}")
    factor = at.encoder.stride
    groups = factor.bit_length()
    if factor != 2 ** (groups - 1):
        raise ValueError(f"dvae needs a map of half, a quarter... of the image's side, not a {factor}th; try dalle")
    channels, side = dense_shape(at.encoder, at.image_size, at.channels)
    if side * factor != at.image_size:
        raise ValueError(
            f"the encoder's map of {side} places does not divide {at.image_size} px; use --image-size {side * factor}"
        )
    chosen = codes or (512 if at.small else 8192)
    hidden = _hidden(at)
    method = DVAE(
        at.encoder,
        CodeHead(channels, chosen),
        DalleDecoder(chosen, at.channels, groups=groups, hidden=hidden, start=max(hidden // 2, 8)),
        temperature=cosine(1.0, end_temperature, share=0.75 if at.small else 1 / 20),
        kl_weight=cosine(0.0, kl_weight, share=1 / 600),
        momentum=momentum,
    )
    lr = cosine(1e-3, 1.25e-5) if at.small else cosine(1e-4, 1.25e-6, share=0.4)
    main = OptimiserSpec(build=partial(AdamW, betas=(0.9, 0.999)), lr=lr, weight_decay=constant(1e-4), groups=decay_all)
    set_scope_(method, "all")
    view = View(size=at.image_size, of_square=True, scale=(64 / 144, 64 / 81), ratio=(1.0, 1.0), normalise=None)
    return Recipe(
        method=method,
        views=seeded_view(view),
        optimisers={"main": main},
        epochs=at.epochs or (200 if at.small else 1200),
        batch_size=at.batch_size or (256 if at.small else 512),
    )


def _hidden(at: Setting) -> int:
    """The decoder's width: that of DALL-E's encoder, else the published one's, or half for small images."""
    shape = getattr(getattr(at.encoder, "model", None), "shape", None)
    return getattr(shape, "hidden", 128 if at.small else 256)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    at = Setting(
        encoder=build_encoder("dalle_nano", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64
    )
    return {"dvae": on_the_world(dvae(at, codes=64), peak=2e-3)}
