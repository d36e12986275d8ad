"""What the world is painted with: drawn numbers, planes, smooth noise, patterns, strokes, colours; a batch at a time.

Waves and noise are sums of products of a function of x and a function of y, so a field of ``s x s`` pixels costs one
thin matrix product and not a sine a pixel.
"""

from functools import lru_cache

import numpy as np

from selfsight.keyed import words

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of brightness, ITU-R BT.601: those of torchvision's greyscale."""


class Draws:
    """Hands out each scene's uniform numbers in a fixed order, so that scenes depend on nothing but their own."""

    def __init__(self, uniforms: np.ndarray) -> None:
        self._uniforms = uniforms
        self._next = 0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """A number of [low, high) for each scene, ``[b 1 1]``."""
        return self.row(1, low, high)[:, :, None]

    def row(self, n: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """``n`` numbers of [low, high) for each scene, ``[b n]``."""
        taken = self._uniforms[:, self._next : self._next + n]
        assert taken.shape[1] == n, "a scene draws more numbers than it was given"
        self._next += n
        return low + (high - low) * taken

    def sign(self) -> np.ndarray:
        return np.where(self() < 0.5, np.float32(-1), np.float32(1))

    def branch(self, n: int, *, rows: int) -> "Draws":
        """The next ``n`` numbers of the first scenes alone, for what only they have; they are taken from all."""
        taken = Draws(self._uniforms[:rows, self._next : self._next + n])
        self._next += n
        return taken


def cos_sin(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine, computed in float64: so a scene's bits do not depend on which are drawn beside it."""
    wide = angle.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """A fixed table of nearly normal numbers, each the sum of four 16-bit uniforms; grain is read here."""
    index = np.arange(1 << 16)
    bits = words(0, np.zeros_like(index), index, "world grain", 8)
    parts = np.stack([bits & np.uint64(0xFFFF), bits >> np.uint64(16)], axis=-1).reshape(-1, 4).astype(np.float32)
    return (parts.sum(axis=1) / 65535 - 2) * np.float32(3**0.5)


@lru_cache(maxsize=64)
def _stretches(need: int) -> np.ndarray:
    """All stretches of ``need`` numbers of the table, as a view."""
    table = _table()
    if 2 * need > len(table):
        table = np.tile(table, -(-2 * need // len(table)))
    return np.lib.stride_tricks.sliding_window_view(table, need)


def grain(draws: Draws, layers: int, height: int, width: int) -> np.ndarray:
    """Unit normal numbers ``[b layers height width]``: stretches of the table, each from a drawn place."""
    stretches = _stretches(height * width)
    start = (draws.row(layers) * np.float32(len(stretches) - 1)).astype(np.int64)
    return stretches[start].reshape(-1, layers, height, width)


@lru_cache(maxsize=64)
def axis(size: int) -> np.ndarray:
    """Pixel centres, from -1 to 1."""
    return ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)


@lru_cache(maxsize=64)
def stretch(size: int, cells: int) -> np.ndarray:
    """The matrix ``[size cells]`` that interpolates a lattice over an image; its rows sum to one."""
    at = (axis(size).astype(np.float64) + 1) / 2 * (cells - 1)
    left = np.clip(np.floor(at), 0, cells - 2).astype(np.int64)
    part = at - left
    part = part * part * (3 - 2 * part)
    matrix = np.zeros((size, cells), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - part
    matrix[np.arange(size), left + 1] = part
    return matrix


def plane(size: int, along_x: np.ndarray, along_y: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """``along_x x + along_y y + offset``, ``[b s s]``: a product of rank two, faster than broadcasting."""
    u = axis(size)
    down = np.empty((len(along_x), size, 2), dtype=np.float32)
    across = np.empty((len(along_x), 2, size), dtype=np.float32)
    down[:, :, 0], down[:, :, 1:] = 1, along_y * u[:, None]
    across[:, :1], across[:, 1] = along_x * u + offset, 1
    return down @ across


def noise(draws: Draws, size: int, cells: int, strength: np.ndarray) -> np.ndarray:
    """Smooth noise: a random lattice of ``cells x cells``, interpolated."""
    up = stretch(size, cells)
    return up @ (grain(draws, 1, cells, cells)[:, 0] * strength) @ up.T


PATTERNS = ("plain", "gradient", "stripes", "checks", "dots", "noise")
_WEIGHTS = np.array(  # of the wave p, of the product p q of two waves across each other, of noise; and an offset
    [
        [0.1, 0.0, 0.10, 0.5],
        [0.6, 0.0, 0.10, 0.5],
        [2.0, 0.0, 0.00, 0.5],
        [0.0, 2.5, 0.00, 0.5],
        [0.0, 4.0, 0.00, -1.2],
        [0.0, 0.0, 0.60, 0.5],
    ],
    dtype=np.float32,
)


def _wave(u: np.ndarray, along_x: np.ndarray, along_y: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``[b 2 s]`` along x and along y whose products sum to ``sin(along_x x + along_y y + phase)``."""
    cos_x, sin_x = cos_sin(along_x * u + phase)
    return np.concatenate([sin_x, cos_x], axis=1), np.concatenate(cos_sin(along_y * u), axis=1)


def pattern(draws: Draws, size: int, *, cells: int, frequency: tuple[float, float]) -> np.ndarray:
    """One of ``PATTERNS`` for each scene, ``[b s s]`` from 0 to 1, with waves of ``frequency`` radians per half image.

    One formula, ``clip(a p + c p q + d n + e)``, whose weights depend on the pattern, and one matrix product: the
    factors of ``p q`` are the products of the factors of ``p`` and ``q``.
    """
    kind = (draws.row(1)[:, 0] * len(PATTERNS)).astype(np.int64)
    a, c, d, e = (_WEIGHTS[kind, i][:, None, None] for i in range(4))
    rate = np.where(kind[:, None, None] < 2, draws(0.8, 1.6), draws(*frequency))
    cos, sin = cos_sin(draws(0, 2 * np.pi))
    b, up = len(kind), stretch(size, cells)
    p_across, p_down = _wave(axis(size), rate * cos, rate * sin, draws(0, 2 * np.pi))
    q_across, q_down = _wave(axis(size), -rate * sin, rate * cos, draws(0, 2 * np.pi))
    across = np.empty((b, 6 + cells, size), dtype=np.float32)
    across[:, :2] = a * p_across
    across[:, 2:6] = ((c * p_across)[:, :, None] * q_across[:, None]).reshape(b, 4, size)
    across[:, 6:] = (grain(draws, 1, cells, cells)[:, 0] * d + e) @ up.T
    down = np.empty((b, 6 + cells, size), dtype=np.float32)
    down[:, :2] = p_down
    down[:, 2:6] = (p_down[:, :, None] * q_down[:, None]).reshape(b, 4, size)
    down[:, 6:] = up.T
    field = down.transpose(0, 2, 1) @ across
    return np.clip(field, 0, 1, out=field)


def stroke(draws: Draws, size: int, *, reach: tuple[float, float], width: tuple[float, float]) -> np.ndarray:
    """The cover of one bent stroke anywhere, ``[b s s]`` from 0 to 1, with ends and edges one pixel soft."""
    cos, sin = cos_sin(draws(0, 2 * np.pi))
    shift_x = draws(-1, 1)
    shift_y, bend = draws(-1, 1), draws(0, 1.5)
    half, thick = draws(*reach), draws(*width)
    unit = np.sqrt(size / 4 / thick)  # near the edge d = (d^2 - thick^2) / (2 thick): in this unit no root is needed
    bow = np.sqrt(unit * bend)
    y = plane(size, -sin * unit, cos * unit, shift_y * unit)
    x = plane(size, cos * bow, sin * bow, shift_x * bow)
    x *= x
    y += x
    y *= y
    x = plane(size, cos * unit, sin * unit, (shift_x - half) * unit)
    back = plane(size, -cos * unit, -sin * unit, (-shift_x - half) * unit)
    np.maximum(x, back, out=x)
    np.maximum(x, 0, out=x)
    x *= x
    x += y
    np.subtract(size / 4 * thick + np.float32(0.5), x, out=x)
    return np.clip(x, 0, 1, out=x)


def colour(luma: np.ndarray, hue: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """A colour ``[b 3]`` of stated brightness, which stays when the colour is taken away."""
    turns = np.array([0.0, -2.0943951, 2.0943951], dtype=np.float32)
    tint = chroma * cos_sin(hue + turns)[0]
    tint = tint - (LUMA * tint).sum(axis=-1, keepdims=True)
    return np.clip(luma + tint, 0, 1)[:, 0]
