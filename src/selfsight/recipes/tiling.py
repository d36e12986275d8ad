"""What recipes that cut images into tiles ask of their encoder."""

import torch
from torch import nn

from selfsight.encoders.protocol import Encoder, TokenEncoder
from selfsight.recipes.recipe import Setting


def whole_patches(at: Setting, side: int) -> int:
    """``side`` pixels of a tile, or for a vision transformer the next smaller whole number of its patches."""
    if not isinstance(at.encoder, TokenEncoder):
        return side
    patch = at.encoder.patch
    if side < patch:
        name = getattr(at.encoder, "name", type(at.encoder).__name__)
        raise ValueError(
            f"tiles of {side} px are smaller than the patches of {patch} px that {name} takes; "
            "use a smaller --patch-size or a larger --image-size"
        )
    return side // patch * patch


@torch.no_grad()
def width_on(at: Setting, patch: int) -> int:
    """The encoder's width, once it was seen to take tiles of ``patch`` pixels."""
    encoder: Encoder = at.encoder
    module: nn.Module = encoder  # pyright: ignore[reportAssignmentType]  # all encoders are
    training = module.training
    try:
        module.eval()
        encoder(torch.zeros(2, at.channels, patch, patch))
    except (RuntimeError, ValueError, AssertionError) as error:
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(f"{name} does not encode patches of {patch} px; use a convolutional --backbone") from error
    finally:
        module.train(training)
    return encoder.width
