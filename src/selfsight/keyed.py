"""Random numbers that depend on a key alone: Philox 4x32-10 (Salmon et al., 2011), vectorised.

Every number is a pure function of (seed, epoch, sample index, stream, position). So a view does not depend on the
number of workers, the batch size, the world size or a restart.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_BLOCK = 1 << 14
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Key(NamedTuple):
    """What a batch's random numbers depend on: one seed, and each sample's epoch and index."""

    seed: int
    epoch: Int[Tensor, " b"]
    index: Int[Tensor, " b"]


def philox(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox 4x32-10 on arrays of 32-bit words held in uint64 (broadcast against each other)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def words(seed: int, epoch: np.ndarray, index: np.ndarray, stream: str, n: int) -> np.ndarray:
    """``n`` 32-bit words for each (epoch, index), as uint64 ``[b, n]``; ``stream`` names what they are for."""
    blocks = np.arange((n + 3) // 4, dtype=np.uint64)[None, :]
    tag = np.uint64(zlib.crc32(stream.encode()))
    rows = index.astype(np.uint64)[:, None]
    out = philox(
        (rows & _LOW, (epoch.astype(np.uint64)[:, None] & _LOW), np.broadcast_to(tag, (1, 1)), blocks),
        (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF),
    )
    shape = (len(index), blocks.shape[1])
    return np.stack([np.broadcast_to(o, shape) for o in out], axis=-1).reshape(len(index), 4 * shape[1])[:, :n]


def uniforms(key: Key, stream: str, n: int) -> Float[Tensor, "b n"]:
    """``n`` numbers in [0, 1) for each sample of ``key``, float32, on the CPU."""
    drawn = words(key.seed, key.epoch.cpu().numpy(), key.index.cpu().numpy(), stream, n)
    return torch.from_numpy(((drawn >> np.uint64(8)) * 2.0**-24).astype(np.float32))


def permutation(n: int, *, seed: int, epoch: int, stream: str = "order") -> np.ndarray:
    """A permutation of ``range(n)`` as int64, a pure function of (seed, epoch, stream)."""
    drawn = np.empty(n, dtype=np.uint64)
    for start in range(0, n, _BLOCK):  # a million at once would take 100 MB, and longer
        index = np.arange(start, min(start + _BLOCK, n), dtype=np.uint64)
        high, low = words(seed, np.full(len(index), epoch, dtype=np.uint64), index, stream, 2).T
        drawn[start : start + _BLOCK] = (high << _HALF) | low
    return np.argsort(drawn, kind="stable").astype(np.int64, copy=False)


def subset(n: int, keep: int, *, seed: int) -> np.ndarray:
    """``keep`` of ``range(n)``, chosen by key, in ascending order: the same whatever else was asked for."""
    return np.sort(permutation(n, seed=seed, epoch=0, stream="subset")[:keep])
