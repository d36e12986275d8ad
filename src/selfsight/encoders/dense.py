"""The shape of an encoder's feature map, which what is built upon it must know."""

from typing import Any

import torch

from selfsight.encoders.protocol import Encoder


@torch.no_grad()
def dense_shape(encoder: Encoder, size: int, channels: int) -> tuple[int, int]:
    """Channels and side of the feature map of a square image of ``size`` pixels, by one forward pass.

    >>> from selfsight.encoders.build import build_encoder
    >>> dense_shape(build_encoder("tiny_cnn", image_size=32), 32, 3)
    (128, 4)
    """
    module: Any = encoder
    training = module.training
    module.eval()
    try:
        first = next(module.parameters())
        shape = module.dense(torch.zeros(1, channels, size, size, device=first.device, dtype=first.dtype)).shape
    finally:
        module.train(training)
    return shape[1], shape[-1]
