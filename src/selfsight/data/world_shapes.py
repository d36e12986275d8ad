"""The world's classes as signed distances: negative inside, about 1 per unit, each shape within the unit disc.

A distance gives a mask at any size, a smooth edge, a bevel and a soft shadow by arithmetic alone. Each shape is its own
mirror image, so a flip keeps every class; each turns freely in a scene, so none is told from another by its pose.
Several differ from the others in what they are made of (bars, dots, panes), so that a crop still shows the class.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

Coordinate = Float32[np.ndarray, "b h w"]
Distance = Callable[[Coordinate, Coordinate], Coordinate]


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 0.84


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.71) - 0.21


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(-y, 0.8660254 * np.abs(x) + 0.5 * y) - 0.5


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Folds at 36 degrees bring the ten edges onto one: the line from the tip (0, 1) to its inner corner."""
    x = np.abs(x)
    for across in (0.809017, -0.809017):
        over = 2 * np.maximum(across * x - 0.587785 * y, 0)
        x = x - across * over
        y = y + 0.587785 * over
    inner_x, inner_y = 0.44 * 0.587785, 0.44 * 0.809017
    length = float(np.hypot(1 - inner_y, inner_x))
    return (1 - inner_y) / length * np.abs(x) + inner_x / length * (y - 1)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.27)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x + 0.12
    bite, y2 = x - 0.5, y * y
    return np.maximum(np.sqrt(x * x + y2) - 0.92, 0.72 - np.sqrt(bite * bite + y2))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A square on its corner with a half disc on each upper side."""
    x, y = np.abs(x), y + 0.12
    square = 0.70710678 * (x + np.abs(y)) - 0.5
    x, y = x - 0.35355339, y - 0.35355339
    return np.minimum(square, np.sqrt(x * x + y * y) - 0.5)


def _window(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A frame with four panes."""
    x, y = np.abs(x), np.abs(y)
    pane = np.maximum(np.abs(x - 0.36), np.abs(y - 0.36))
    return np.maximum(np.maximum(x, y) - 0.72, 0.2 - pane)


def _comb(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Three teeth on a back: a letter E."""
    y = np.abs(y)
    teeth = np.maximum(np.minimum(y, np.abs(y - 0.66)) - 0.15, np.abs(x) - 0.57)
    back = np.maximum(np.abs(x + 0.42) - 0.15, y - 0.81)
    return np.minimum(teeth, back)


def _dice(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five dots, as on a die."""
    x, y = np.abs(x), np.abs(y)
    middle = x * x + y * y
    x, y = x - 0.54, y - 0.54
    return np.sqrt(np.minimum(middle, x * x + y * y)) - 0.26


DISTANCES: Mapping[str, Distance] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "window": _window,
    "comb": _comb,
    "dice": _dice,
}
"""Each class's distance, in the order of their labels; ``y`` points up in the shape's own frame."""


def distances(label: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The distance of each scene's own class; ``label`` is best sorted, since each run of one label is one call."""
    out = np.empty_like(x)
    functions = tuple(DISTANCES.values())
    edges = [0, *(np.flatnonzero(np.diff(label)) + 1), len(label)]
    for start, stop in pairwise(edges):
        out[start:stop] = functions[label[start]](x[start:stop], y[start:stop])
    return out
