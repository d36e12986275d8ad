"""Shortcuts: what sees nothing but mean colour, a lens's fringes, edges, borders or JPEG's grid must stay near chance.

Each test makes images in which one shortcut alone tells where a tile was, and reads it by a linear classifier on hand-
made features. Without the countermeasure the classifier finds the place: so it would have seen a leak.
"""

from dataclasses import replace

import pytest
import torch
from shortcuts import fringes, texture, through_a_lens, told
from torch import Tensor

from selfsight.keyed import Key
from selfsight.parts.permutations import maximal_hamming
from selfsight.recipes.context_prediction import context_prediction
from selfsight.recipes.jigsaw import jigsaw
from selfsight.recipes.recipe import Setting
from selfsight.views.pairs import PairGrid, neighbours, patch_pairs
from selfsight.views.puzzles import PuzzleGrid, puzzles
from selfsight.views.tiles import take
from selfsight.views.view import View

CHANCE, NEAR, FOUND = 1 / 8, 1 / 8 + 0.06, 0.4
WHOLE = View(size=96, scale=(1.0, 1.0), ratio=(1, 1), flip=0)


def patches_of(views: PairGrid | PuzzleGrid, images: Tensor) -> Tensor:
    """The nine tiles of each image, in reading order."""
    k = Key(0, torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)))
    return views.render((255 * images).round().to(torch.uint8), views.plan(k), k).x


def found(tiles: Tensor, feature: object, *, joint: bool = False) -> float:
    """How often the place of a neighbour round the centre is read off what ``feature`` sees of the two tiles.

    A linear discriminant with one covariance, fitted on one half of the images and tested on the other. ``joint``:
    the feature compares the two tiles, otherwise it sees each by itself.
    """
    first, second, label = neighbours("centre")
    a, b = tiles[:, first].flatten(0, 1), tiles[:, second].flatten(0, 1)
    x = feature(a, b) if joint else torch.cat([feature(a), feature(b)], dim=1)
    return told(x, label.repeat(len(tiles)))


def grids(size: int) -> tuple[PairGrid, PuzzleGrid]:
    """The recipes' own views at this size, of whole images."""
    at = Setting(encoder=_Seeing(), image_size=size, samples=1000)
    pairs, jig = context_prediction(at, hidden=8).views, jigsaw(at, permutations=2, hidden=8, tile_width=8).views
    whole = (replace(pairs.views[0], scale=(1.0, 1.0)),)
    return replace(pairs, views=whole), jig


class _Seeing(torch.nn.Module):
    width, stride = 4, 1

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1, :2, :2].flatten(1)

    def dense(self, x: Tensor) -> Tensor:
        return x


def colours(x: Tensor) -> Tensor:
    """Mean and deviation of each channel."""
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


def test_mean_colour() -> None:
    images = 0.3 * texture(150) + 0.2
    ramp = torch.linspace(0, 0.5, 96)
    images[:, 0] += ramp  # redder to the right, greener below
    images[:, 1] += ramp[:, None]
    pairs, jig = grids(96)
    for views in (replace(pairs, normal=False, colour="keep"), replace(jig, normal=False)):
        assert found(patches_of(views, images), colours) > 0.9
    for views in (pairs, replace(pairs, colour="project"), replace(pairs, colour="keep"), jig, replace(jig, grey=0.0)):
        assert found(patches_of(views, images), colours) < NEAR


def test_chromatic_aberration() -> None:
    images = through_a_lens(250)
    pairs, jig = grids(96)
    seen = found(patches_of(replace(pairs, colour="keep"), images), fringes)
    assert seen > 0.8
    for colour in ("drop", "project"):
        assert found(patches_of(replace(pairs, colour=colour), images), fringes) < NEAR
    together = replace(jig, grey=0.0, spread=0)
    seen = found(patches_of(together, images), fringes)
    assert seen > 0.8
    for grey, project in ((1.0, 0.0), (0.0, 1.0)):
        assert found(patches_of(replace(jig, grey=grey, project=project), images), fringes) < NEAR
    apart = found(patches_of(replace(jig, grey=0.0, spread=3), images), fringes)
    assert apart < seen - 0.2  # moving the channels alone makes the fringes less telling, as far as they go


def touching(a: Tensor, b: Tensor) -> Tensor:
    """How much unlike the borders are along which two tiles would touch, for each of the eight places."""
    sides = [
        (a[..., 0, :1], b[..., -1, -1:]),
        (a[..., 0, :], b[..., -1, :]),
        (a[..., 0, -1:], b[..., -1, :1]),
        (a[..., :, 0], b[..., :, -1]),
        (a[..., :, -1], b[..., :, 0]),
        (a[..., -1, :1], b[..., 0, -1:]),
        (a[..., -1, :], b[..., 0, :]),
        (a[..., -1, -1:], b[..., 0, :1]),
    ]
    return torch.stack([(one - other).abs().mean((1, 2)) for one, other in sides], dim=1)


def test_edges_that_go_on() -> None:
    images = texture(250)
    pairs, jig = grids(96)
    close = patch_pairs(WHOLE, patch=32, gap=0, jitter=0, colour="keep", coarse=0)
    whole = puzzles(WHOLE, maximal_hamming(2), tile=32, grey=0)
    for views in (close, whole):
        assert found(patches_of(views, images), touching, joint=True) > FOUND
    for views in (pairs, replace(pairs, colour="keep", coarse=0.0), jig, replace(jig, grey=0.0)):
        assert found(patches_of(views, images), touching, joint=True) < NEAR


def borders(x: Tensor) -> Tensor:
    """How dark each border is, as against the middle."""
    middle = x[..., 4:-4, 4:-4].mean((1, 2, 3))
    edges = (x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1])
    return torch.stack([edge.mean((1, 2)) - middle for edge in edges], dim=1)


def test_no_tile_has_a_border_of_its_own() -> None:
    images = texture(200, 40) * 0.2 + 0.7
    for size in (32, 48):
        for views in grids(size):
            crops = replace(views, views=(replace(views.views[0], scale=(0.3, 1.0)),))
            bare = {"normal": False, **({"colour": "keep", "coarse": 0.0} if isinstance(views, PairGrid) else {})}
            x = patches_of(replace(crops, **bare), images)
            assert x.min() > 0.6, "something was padded"
            x = patches_of(crops, images)
            assert found(x, borders) < NEAR
    padded = View(size=32, scale=None, padding=4, flip=0)
    control = patch_pairs(padded, patch=10, gap=0, jitter=1, colour="keep", coarse=0, normal=False)
    assert found(patches_of(control, images[..., :32, :32]), borders) > 2 * CHANCE


def on_a_grid(n: int, size: int = 224) -> Tensor:
    """Textures with weak lines every eight pixels, as JPEG leaves them."""
    x = 0.4 * texture(n, size) + 0.3
    x[..., ::8, :] += 0.15
    x[..., ::8] += 0.15
    return x


def phase(a: Tensor, b: Tensor) -> Tensor:
    """By how much the second tile's grid of eight pixels is moved against the first's, down and right, as angles."""
    both = []
    for axis in (2, 3):
        wave = torch.exp(2j * torch.pi * torch.arange(a.shape[2]) / 8)
        one, other = ((t.mean((1, 5 - axis)).to(wave.dtype)) @ wave for t in (a, b))
        turned = one * other.conj()
        turned = turned / turned.abs().clamp_min(1e-9)
        both += [turned.real, turned.imag]
    return torch.stack(both, dim=1)


def test_the_grid_of_jpeg() -> None:
    images = on_a_grid(120)
    pairs, jig = grids(224)
    still = replace(pairs, jitter=0, gap=29, colour="keep", coarse=0.0)  # 83 px from one patch to the next
    assert found(patches_of(still, images), phase, joint=True) > 0.9
    k = torch.arange(3)
    corner = (torch.stack(torch.meshgrid(k, k, indexing="ij"), -1).flatten(0, 1) * 74)[None].expand(120, -1, -1)
    fixed = take(images, corner[..., :1], corner[..., 1:], 56)
    assert found(fixed, phase, joint=True) > 0.9
    for views in (pairs, replace(pairs, colour="keep", coarse=0.0), jig, replace(jig, grey=0.0)):
        assert found(patches_of(views, images), phase, joint=True) < NEAR


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_grey_puzzle_has_no_fringe_in_any_tile(share: float) -> None:
    images = torch.rand(300, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    views = puzzles(replace(WHOLE, size=48), maximal_hamming(2), tile=12, spread=2, grey=share)
    x = patches_of(views, images)
    alike = ((x[:, :, 0] == x[:, :, 1]) & (x[:, :, 0] == x[:, :, 2])).all(dim=(2, 3))
    assert (alike.all(1) == alike.any(1)).all()  # all tiles of a puzzle or none
    assert float(alike.all(1).float().mean()) == pytest.approx(share, abs=0.08)
