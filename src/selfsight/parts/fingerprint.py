"""A checksum of a frozen network that is no part of a run: a run that goes on with another one is refused."""

import zlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> int:
    """A checksum of all weights and statistics: two networks that have the same say the same.

    >>> layer = nn.Linear(2, 2)
    >>> before = fingerprint(layer)
    >>> _ = layer.weight.data.add_(1e-3)
    >>> fingerprint(layer) == before
    False
    """
    kept = [x for name, x in module.state_dict().items() if not name.endswith("num_batches_tracked")]
    whole = torch.cat([x.detach().float().flatten().cpu() for x in kept])
    return zlib.crc32(whole.numpy().tobytes())
