"""Pixels as targets, and what methods that predict them show of themselves."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfsight.losses.precision import full
from selfsight.losses.reconstruction import normalise_patches, patchify, unpatchify


class Reconstruction(NamedTuple):
    """What a report shows, in the space of the encoder's input (normalised, if the views normalise)."""

    masked: Float[Tensor, "b c h w"]
    """What is hidden is zero, or has the colour that it is filled with."""
    reconstruction: Float[Tensor, "b c h w"]
    """Predictions where pixels were hidden, the image elsewhere."""
    original: Float[Tensor, "b c h w"]
    hidden: Bool[Tensor, "b h w"] | None = None
    """Which pixels were hidden, where that is what ``reconstruction`` differs by."""


def pixel_targets(x: Float[Tensor, "b c h w"], patch: int, *, normalise: bool) -> Float[Tensor, "b n p"]:
    """Each patch's pixels, if asked for by the patch's own mean and deviation (MAE)."""
    patches = patchify(full(x), patch)
    return normalise_patches(patches).x if normalise else patches


@torch.no_grad()
def reconstructed(
    x: Float[Tensor, "b c h w"],
    prediction: Float[Tensor, "b n p"],
    masked: Int[Tensor, "b m"],
    patch: int,
    *,
    normalised: bool,
) -> Reconstruction:
    """Masked input, reconstruction and original from a prediction of ``pixel_targets``.

    Where these are normalised the true patch's mean and scale undo it, since the network never learns them.
    """
    patches, (height, width) = patchify(full(x), patch), x.shape[-2:]
    prediction = full(prediction)
    if normalised:
        normal = normalise_patches(patches)
        prediction = prediction * normal.scale + normal.mean
    hidden = torch.zeros_like(patches[..., :1]).scatter_(1, masked[..., None].long(), 1.0)
    whole = torch.where(hidden > 0, prediction, patches)
    parts = (patches * (1 - hidden), whole, patches, hidden.expand_as(patches))
    seen, made, original, where = (unpatchify(part, patch, height, width) for part in parts)
    return Reconstruction(seen, made, original, where[:, 0] > 0)
