r"""The recipe of DeepMIM (Ren et al., 2023, arXiv 2303.08817). The method: ``selfsight.methods.deepmim``.

Blocks in the middle of a masked autoencoder solve its task too, each with a decoder of its own:
:math:`L = \sum_l \frac1{|M|} \sum_{i \in M} \frac1p \lVert p^l_i - t^l_i \rVert^2`.

**Large images**: the paper's, which are MAE's (``selfsight.recipes.mae``) for 1600 epochs: batch 4096, 1.5e-4 x batch /
256, a warm-up of 40 epochs, decay 0.05, betas 0.9 and 0.95, three quarters hidden. Blocks 6, 8, 10 and 12 of 12 are
supervised, with weights of one. Each decoder has 4 blocks of width 512 and 16 heads (the official code's constructor),
half of MAE's.

**Small images** (up to 96 px): the paper has none. MAE's here, with half of its decoder for each level too: 2 blocks of
the encoder's width.

Encoders of another depth are supervised at the same parts of it: after a half, two thirds, five sixths and all of
their blocks, rounded. A hybrid target's share of pixels grows evenly from the middle to the last block, which gives
the paper's 0, 1/3, 2/3 and 1.
"""

from typing import Any

from torch import nn

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import LayeredEncoder
from selfsight.engine.run import open_run
from selfsight.methods.deepmim import DeepMIM
from selfsight.recipes.mae import decoder_for, token_encoder, trained_as_mae
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import Recipe, Setting, positive

CARDS = {
    "deepmim": {
        "family": "masked",
        "title": "DeepMIM",
        "year": 2023,
        "arxiv": "2303.08817",
        "fact": "MAE whose middle blocks predict the hidden pixels too, each with a decoder of its own.",
        "encoder": "vit_base_patch16_224",
        "small_encoder": "vit_tiny_patch16_224",
        "small_options": {"patch_size": 4},
        "needs": "tokens",
    }
}


def deepmim(
    at: Setting,
    *,
    mask_ratio: float = 0.75,
    normalise_target: bool = True,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    hybrid: str | None = None,
) -> Recipe[MaskedImages]:
    """DeepMIM: MAE with deep supervision.

    Parameters
    ----------
    at
        What the run knows.
    mask_ratio
        The share of patches that are hidden.
    normalise_target
        Predict each patch's pixels normalised by their own mean and deviation.
    decoder_width
        Width of each decoder, 32 for each head. Default: 512, for small images the encoder's.
    decoder_depth
        Blocks of each decoder. Default: 4, for small images 2.
    hybrid
        A run of mae whose reconstructions make the targets of middle blocks easier. Default: none.
    """
    positive(decoder_width=decoder_width, decoder_depth=decoder_depth)
    encoder = token_encoder(at, "deepmim")
    if not isinstance(encoder, LayeredEncoder):
        raise ValueError("deepmim needs a transformer whose blocks can be reached; try --backbone vit_base_patch16_224")
    taps = supervised(encoder.depth)
    patch = encoder.patch
    decoders = {
        block: decoder_for(at, encoder.width, patch, width=decoder_width, depth=decoder_depth, usual=(4, 2))
        for block in taps
    }
    method = DeepMIM(
        encoder,
        decoders,
        normalise_target=normalise_target,
        shares={block: share(block, encoder.depth) for block in taps} if hybrid else None,
        guide=_guide(hybrid, at, patch, normalise_target) if hybrid and at.training else None,
    )
    return trained_as_mae(at, method, patch=patch, mask_ratio=mask_ratio, epochs=1600)


def supervised(depth: int) -> tuple[int, ...]:
    """The blocks that get a decoder: after a half, two thirds, five sixths and all of them.

    >>> supervised(12), supervised(2)
    ((6, 8, 10, 12), (1, 2))
    """
    return tuple(sorted({max(round(depth * part / 6), 1) for part in (3, 4, 5, 6)}))


def share(block: int, depth: int) -> float:
    """The pixels' share in a block's hybrid target: 0 up to the middle of the encoder, 1 at its end.

    >>> [round(share(block, 12), 3) for block in (6, 8, 10, 12)]
    [0.0, 0.333, 0.667, 1.0]
    """
    return max(2 * block / depth - 1, 0.0)


def _guide(run: str, at: Setting, patch: int, normalise_target: bool) -> nn.Module:
    """The trained MAE of a run, if its predictions are of the same pixels."""
    opened = open_run(run)
    if opened.method != "mae":
        raise ValueError(f"--hybrid takes a run of mae, and {run} is one of {opened.method}")
    guide: Any = opened.recipe().method
    theirs = (opened.image_size, opened.flags.channels, guide.encoder.patch, guide.normalise_target)
    ours = (at.image_size, at.channels, patch, normalise_target)
    words = ("image size", "number of channels", "patch", "normalise_target")
    for word, their, our in zip(words, theirs, ours, strict=True):
        if their != our:
            raise ValueError(f"--hybrid {run} has another {word}, {their}, than this training, {our}")
    return guide


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train.

    Pixels are predicted as they are: many patches of the embedded world are one colour, of which normalising leaves
    noise. The feature is the patches' mean, as the paper fine-tunes it.
    """
    small = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2, "global_pool": "avg"}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, **small)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"deepmim": on_the_world(deepmim(at, decoder_depth=1, normalise_target=False), peak=2e-3)}
