"""A checksum of a frozen network that is no part of a run: a run that goes on with another one is refused."""

import zlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> int:
    """A checksum of all weights: two networks that say the same have the same.

    >>> layer = nn.Linear(2, 2)
    >>> before = fingerprint(layer)
    >>> _ = layer.weight.data.add_(1e-3)
    >>> fingerprint(layer) == before
    False
    """
    whole = torch.cat([p.detach().float().flatten().cpu() for p in module.parameters()])
    return zlib.crc32(whole.numpy().tobytes())
