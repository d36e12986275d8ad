"""Tiles: cut where they should be, and changed by exactly what the papers say."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from selfsight.views import tiles


def test_each_channel_has_its_own_corner() -> None:
    x = torch.arange(2 * 3 * 10 * 12.0).reshape(2, 3, 10, 12)
    top, left = torch.randint(0, 5, (2, 4, 3)), torch.randint(0, 7, (2, 4, 3))
    out = tiles.take(x, top, left, 5)
    one = tiles.take(x, top[..., :1], left[..., :1], 5)
    for b in range(2):
        for n in range(4):
            for c in range(3):
                t, e = int(top[b, n, c]), int(left[b, n, c])
                assert torch.equal(out[b, n, c], x[b, c, t : t + 5, e : e + 5])
                t, e = int(top[b, n, 0]), int(left[b, n, 0])
                assert torch.equal(one[b, n, c], x[b, c, t : t + 5, e : e + 5])


@pytest.mark.parametrize("joint", [True, False])
def test_mean_and_deviation_are_taken_out(joint: bool) -> None:
    x = 0.3 + 0.2 * torch.rand(2, 9, 3, 8, 8) * torch.tensor([0.2, 1.0, 3.0])[:, None, None]
    out = tiles.normalise_(x.clone(), joint=joint)
    assert out.mean((-2, -1)).abs().max() < 1e-5
    spread = out.square().mean((-2, -1))
    if joint:
        assert (spread.mean(-1) - 1).abs().max() < 0.01
        assert (spread[..., 2] > 20 * spread[..., 0]).all()
    else:
        before = x.var((-2, -1), correction=0)
        torch.testing.assert_close(spread, before / (before + 1 / 255**2), rtol=1e-3, atol=1e-3)
    flat = tiles.normalise_(torch.full((1, 3, 4, 4), 0.7), joint=joint)
    assert flat.isfinite().all()
    assert flat.abs().max() < 1e-3


def test_the_projection_takes_one_axis_out_and_no_more() -> None:
    a = torch.tensor([[-1.0, 2.0, -1.0]]).double()
    matrix = torch.eye(3).double() - a.T @ a / (a @ a.T)
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    out = tiles.project_(x.clone())
    torch.testing.assert_close(out, torch.einsum("ij,bjhw->bihw", matrix, x))
    torch.testing.assert_close(matrix @ matrix, matrix)
    assert (matrix @ a.T).abs().max() < 1e-12
    assert torch.linalg.matrix_rank(matrix) == 2
    torch.testing.assert_close(tiles.project_(out.clone()), out)
    assert (-out[:, 0] + 2 * out[:, 1] - out[:, 2]).abs().max() < 1e-12
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(tiles.project_(grey.clone()), grey)


def test_two_colours_give_way_to_weak_noise() -> None:
    torch.manual_seed(0)
    x = torch.rand(600, 3, 6, 6)
    u = torch.rand(600, 5)
    out = tiles.drop_(x.clone(), u)
    spread = out.square().mean((2, 3)).sqrt()
    kept = spread.argmax(1)
    assert (kept == (u[:, 0] * 3).long()).all()
    assert kept.bincount(minlength=3).min() > 150
    rows = torch.arange(600)
    own = x[rows, kept]
    torch.testing.assert_close(out[rows, kept], own - own.mean((1, 2), keepdim=True))
    ratio = spread / spread[rows, kept][:, None]
    noise = ratio.scatter(1, kept[:, None], 0.01)
    assert (noise - 0.01).abs().max() < 0.004  # a hundredth, as far as a window of 36 pixels can tell
    assert (out[rows, (kept + 1) % 3] != out[rows, (kept + 2) % 3]).any(dim=(1, 2)).float().mean() > 0.9
    # what is dropped leaves nothing behind
    other = x.clone()
    other[rows, (kept + 1) % 3] = 0.5
    assert torch.equal(tiles.drop_(other, u), out)
    five = torch.rand(2, 5, 4, 4)
    assert torch.equal(tiles.drop_(five.clone(), u[:2]), five)


def resized(x: Tensor, side: int) -> Tensor:
    small = interpolate(x, (side, side), mode="bilinear", antialias=True)
    return interpolate(small, x.shape[-2:], mode="bilinear", antialias=True)


def test_patches_are_made_coarse_and_enlarged_again() -> None:
    torch.manual_seed(0)
    x, u = torch.rand(40, 3, 24, 24), torch.rand(40, 2)
    out = tiles.coarsen_(x.clone(), u, 0.5)
    for k in range(40):
        if u[k, 0] >= 0.5:
            assert torch.equal(out[k], x[k])
            continue
        side = int((6.25 + float(u[k, 1]) * (23.75**2 - 6.25)) ** 0.5)
        torch.testing.assert_close(out[k], resized(x[k : k + 1], side)[0], atol=1e-4, rtol=1e-4)
    least = tiles.coarsen_(x.clone(), torch.zeros(40, 2), 1.0)
    torch.testing.assert_close(least, resized(x, 2), atol=1e-4, rtol=1e-4)


def test_pictures_have_tiles_in_reading_order() -> None:
    x = torch.arange(9.0)[None, :, None, None, None].expand(2, 9, 3, 4, 4) / 10
    out = tiles.mosaic(x, 2)
    assert out.shape == (2, 3, 20, 20)
    for k in range(9):
        top, left = 2 + k // 3 * 6, 2 + k % 3 * 6
        assert (out[:, :, top : top + 4, left : left + 4] == round(25.5 * k)).all()
    assert (out[:, :, :2] == 255).all()
    assert (out[:, :, :, -2:] == 255).all()
