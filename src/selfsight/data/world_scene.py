"""One batch of the world's scenes: a twig, the objects, clutter and a background, laid from the front to the back.

A layer is a field of weights, what is still unhidden times the layer's cover, and five constants: red, green, blue,
depth, and whether it belongs to an object. One matrix product of constants and weights paints image, depth and mask.
"""

from typing import NamedTuple

import numpy as np

from selfsight.data.world_paint import Draws, colour, cos_sin, grain, noise, pattern, plane, stretch, stroke
from selfsight.data.world_shapes import distances

OBJECTS = 2
"""At most so many objects in a scene, all of one class, each with a pose and a paint of its own."""
NUMBERS = 116
"""At least as many uniform numbers as a scene draws; a multiple of four."""
_TURN = 2 * np.pi
_ABOVE = (
    7 / 12 * _TURN,
    11 / 12 * _TURN,
)  # light comes from above, give or take 60 degrees: pictures have an upper side
_STROKES = 3  # behind the objects
_RELIEF = 4.5  # an object's edge slopes over 1/4.5 of its radius


class _Light(NamedTuple):
    """Where the light comes from, and how bright the background is: ``[b 1 1]``."""

    x: np.ndarray
    y: np.ndarray
    ground: np.ndarray


class _Layers:
    """Fields of weights from the front to the back, and what of the scene is still unhidden."""

    def __init__(self, scenes: int, size: int, objects: int) -> None:
        layers = 1 + 1 + 2 * objects + _STROKES + 2  # grey; twig, objects, clutter, background
        self.weights = np.empty((scenes, layers, size, size), dtype=np.float32)
        self.constants = np.zeros((scenes, 5, layers), dtype=np.float32)
        self.constants[:, :3, 0] = 1
        self.grey = self.weights[:, 0]
        self.grey[:] = 0
        self.unhidden = np.ones((scenes, size, size), dtype=np.float32)
        self._next = 1

    def lay(self, cover: np.ndarray, paint: np.ndarray, depth: np.ndarray) -> None:
        """Lays a layer of one paint ``[b 3]``."""
        weight = self.weights[:, self._next]
        np.multiply(self.unhidden, cover, out=weight)
        self.unhidden -= weight
        self.constants[:, :3, self._next] = paint
        self.constants[:, 3, self._next] = depth[:, 0, 0]
        self._next += 1

    def lay_mixed(
        self, cover: np.ndarray, share: np.ndarray, paints: tuple[np.ndarray, np.ndarray], depth: np.ndarray
    ) -> np.ndarray:
        """Lays an object of two paints on the first scenes, ``a + share (b - a)``; gives its weights."""
        n = len(cover)
        self.weights[n:, self._next : self._next + 2] = 0
        weight, mixed = self.weights[:n, self._next], self.weights[:n, self._next + 1]
        np.multiply(self.unhidden[:n], cover, out=weight)
        self.unhidden[:n] -= weight
        np.multiply(weight, share, out=mixed)
        self.constants[:n, :3, self._next], self.constants[:n, :3, self._next + 1] = paints[0], paints[1] - paints[0]
        self.constants[:n, 3, self._next], self.constants[:n, 4, self._next] = depth[:, 0, 0], 1
        self._next += 2
        return weight

    def lay_rest(self, share: np.ndarray, paints: tuple[np.ndarray, np.ndarray]) -> None:
        """Fills what is unhidden with the background's two paints; its depth is no constant."""
        self.weights[:, -2] = self.unhidden
        np.multiply(self.unhidden, share, out=self.weights[:, -1])
        self.constants[:, :3, -2], self.constants[:, :3, -1] = paints[0], paints[1] - paints[0]

    def paint(self) -> np.ndarray:
        """``[b 5 s s]``: red, green, blue, depth, object."""
        b, layers, size, _ = self.weights.shape
        return (self.constants @ self.weights.reshape(b, layers, -1)).reshape(b, 5, size, size)


def scene(
    uniforms: np.ndarray, label: np.ndarray, count: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ``[b 3 s s]`` (float, 0 to 255), masks and depths of scenes sorted by falling ``count``."""
    draws = Draws(uniforms)
    layers = _Layers(len(label), size, objects=int(count.max()))
    light = _Light(*cos_sin(draws(*_ABOVE)), ground=draws(0.3, 0.7))

    layers.lay(
        stroke(draws, size, reach=(0.0, 0.5), width=(0.01, 0.03)), _stray(draws, light.ground), draws(0.15, 0.25)
    )
    shade = _objects(draws, layers, light, label, count)
    for _ in range(_STROKES):
        cover = stroke(draws, size, reach=(0.0, 0.35), width=(0.02, 0.08))
        layers.lay(cover, _stray(draws, light.ground), draws(0.7, 0.75))
    far = plane(size, draws(-0.04, 0.04), draws(-0.08, -0.04), draws(0.88, 0.92))
    far *= layers.unhidden
    layers.unhidden *= shade
    _background(draws, layers, light.ground)

    painted = layers.paint()
    image, depth = painted[:, :3], painted[:, 3]
    depth += far
    slope = draws(0, 0.25 * 255)
    image *= plane(size, light.x * slope, light.y * slope, draws(0.85 * 255, 1.1 * 255))[:, None]
    speckle = grain(draws, 3, size, size)
    speckle *= draws(0.01 * 255, 0.03 * 255)[..., None]
    image += speckle
    return np.clip(image, 0, 255, out=image), painted[:, 4] > 0.5, depth


def _stray(draws: Draws, ground: np.ndarray) -> np.ndarray:
    """The paint of what belongs to no class."""
    return colour(ground + draws.sign() * draws(0.15, 0.4), draws(0, _TURN), draws(0, 0.2))


class _Things(NamedTuple):
    """One object of each of some scenes: fields ``[b 1 1]``, labels ``[b]``, two paints ``[b 3]``."""

    label: np.ndarray
    x: np.ndarray
    y: np.ndarray
    along: np.ndarray
    across: np.ndarray
    radius: np.ndarray
    dark: np.ndarray
    bright: np.ndarray
    depth: np.ndarray

    def distance(self, size: int) -> np.ndarray:
        """The signed distance of each pixel in the objects' own radii; their y points up where they are not turned."""
        x = plane(size, self.along, self.across, -(self.along * self.x + self.across * self.y))
        y = plane(size, self.across, -self.along, -(self.across * self.x - self.along * self.y))
        return distances(self.label, x, y)


def _objects(draws: Draws, layers: _Layers, light: _Light, label: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Lays the objects, one in the middle or two across from each other; gives the light that their shadows leave."""
    size = layers.unhidden.shape[-1]
    single = (count == 1)[:, None, None]
    turn, aside_x, aside_y = draws(0, _TURN), draws(-0.12, 0.12), draws(-0.12, 0.12)
    spread, tone = np.where(single, draws(0, 0.3), draws(0.45, 0.52)), draws(0, _TURN)
    half = -(-size // 2)  # shadows are soft: half the resolution will do
    shadow = np.zeros((len(label), half, half), dtype=np.float32)
    for slot in range(OBJECTS):
        away = cos_sin(turn + np.float32(np.pi * slot))
        x, y = aside_x + spread * away[0], aside_y + spread * away[1]
        radius = np.where(single, draws(0.5, 0.75), draws(0.38, 0.46))
        cos, sin = cos_sin(draws(0, _TURN))
        dark, bright = _skin(draws, light.ground, tone)
        drawn = (
            label,
            x,
            y,
            cos / radius,
            sin / radius,
            radius,
            dark,
            bright,
            draws(0.3, 0.4) + np.float32(0.15 * slot),
        )
        n = int(np.count_nonzero(count > slot))
        texture = draws.branch(8, rows=n)
        if n == 0:
            continue
        things = _Things(*(field[:n] for field in drawn))
        _lay_solid(layers, texture, things, light)
        drop = np.float32(-0.16) * things.radius
        below = things._replace(x=things.x + light.x[:n] * drop, y=things.y + light.y[:n] * drop)
        cast = np.float32(0.5) - 4 * below.distance(half)
        np.maximum(shadow[:n], np.clip(cast, 0, 1, out=cast), out=shadow[:n])
    up = stretch(size, half)
    return up @ (1 - shadow * draws(0.25, 0.5)) @ up.T


def _skin(draws: Draws, ground: np.ndarray, tone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two paints of one object, lighter or darker than the ground by 0.2 or more: it is still seen without colour."""
    side = draws.sign()
    luma = ground + side * draws(0.28, 0.45)
    luma = np.where(np.abs(luma - 0.5) > 0.45, ground - side * np.float32(0.33), luma)
    hue, chroma, step = tone + draws(-0.4, 0.4), draws(0.05, 0.2), draws(0, 0.08)
    return colour(luma - step, hue, chroma), colour(luma + step, hue + np.float32(0.6), chroma)


def _lay_solid(layers: _Layers, texture: Draws, things: _Things, light: _Light) -> None:
    """Lays one object on the first scenes, its edge sloping down so that the side towards the light shines."""
    size, n = layers.unhidden.shape[-1], len(things.label)
    d = things.distance(size)
    height = np.clip(d * np.float32(-_RELIEF), 0, 1)
    d *= things.radius * np.float32(-size / 2)  # in pixels, for an edge of one
    d += np.float32(0.5)
    share = pattern(texture, size, cells=8, frequency=(6, 14))
    weight = layers.lay_mixed(np.clip(d, 0, 1, out=d), share, (things.dark, things.bright), things.depth)

    gain = things.radius * np.float32(-0.16 * size / 4 / _RELIEF)  # times the slope over two pixels: 0.16 at most
    bevel = np.zeros_like(height)
    np.subtract(height[:, :, 2:], height[:, :, :-2], out=bevel[:, :, 1:-1])
    bevel *= light.x[:n] * gain
    rise = height[:, 2:] - height[:, :-2]
    rise *= light.y[:n] * gain
    bevel[:, 1:-1] += rise
    bevel *= weight
    layers.grey[:n] += bevel


def _background(draws: Draws, layers: _Layers, ground: np.ndarray) -> None:
    """Two muted paints in a pattern, and coarse and fine noise."""
    size = layers.unhidden.shape[-1]
    hue, step = draws(0, _TURN), draws(0.02, 0.07)
    paints = (
        colour(ground - step, hue, draws(0.01, 0.05)),
        colour(ground + step, hue + draws(-1, 1), draws(0.01, 0.05)),
    )
    layers.lay_rest(pattern(draws, size, cells=6, frequency=(5, 12)), paints)
    rough = noise(draws, size, 5, draws(0.03, 0.06))
    rough += noise(draws, size, 17, draws(0.02, 0.04))
    rough *= layers.unhidden
    layers.grey += rough
