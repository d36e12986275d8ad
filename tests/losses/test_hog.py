"""HOG against a naive loop over pixels, and the checks of its sheet."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.hog import hog


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mirrored(k: int, n: int) -> int:
    return -k if k < 0 else 2 * (n - 1) - k if k >= n else k


def naive(x: Tensor, cell: int, bins: int, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """One image, pixel by pixel and vote by vote."""
    c, h, w = x.shape
    out = torch.zeros((h // cell) * (w // cell), c * bins, dtype=torch.float64)
    for k in range(c):
        for row in range(h):
            for column in range(w):
                near = [
                    [float(x[k, mirrored(row + i, h), mirrored(column + j, w)]) for j in (-1, 0, 1)] for i in (-1, 0, 1)
                ]  # differences first: at the mirrored border they are zero, on the edge of two bins
                gx = sum(s * (near[i][0] - near[i][2]) for i, s in enumerate((1, 2, 1))) + offset[0]
                gy = sum(s * (near[0][j] - near[2][j]) for j, s in enumerate((1, 2, 1))) + offset[1]
                place = (row // cell) * (w // cell) + column // cell
                out[place, k * bins + math.floor(math.atan2(gx, gy) / math.pi * bins) % bins] += math.hypot(gx, gy)
        own = out[:, k * bins : (k + 1) * bins]
        own /= own.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return out


@pytest.mark.parametrize(("cell", "bins", "shape"), [(4, 9, (3, 8, 12)), (8, 18, (2, 16, 8)), (2, 9, (1, 6, 4))])
@pytest.mark.parametrize("offset", [None, (0.3, -0.2)])
def test_it_is_the_naive_loop(
    cell: int, bins: int, shape: tuple[int, int, int], offset: tuple[float, float] | None
) -> None:
    x = noise(2, *shape)
    given = None if offset is None else torch.tensor(offset, dtype=torch.float64)
    found = hog(x, cell=cell, bins=bins, offset=given)
    assert found.dtype == torch.float64
    for b in range(2):
        torch.testing.assert_close(found[b], naive(x[b], cell, bins, offset or (0.0, 0.0)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bins", [9, 18])
@pytest.mark.parametrize("sign", [1, -1])
def test_upright_edges_fall_into_the_middle_bin_and_level_ones_into_the_first(bins: int, sign: int) -> None:
    step = sign * torch.tensor([0.0, 0.0, 1.0, 1.0])
    upright, level = step.expand(1, 1, 4, 4), step[:, None].expand(1, 1, 4, 4)
    assert hog(upright, cell=4, bins=bins)[0, 0].nonzero().tolist() == [[bins // 2]]
    assert hog(level, cell=4, bins=bins)[0, 0].nonzero().tolist() == [[0]]


def test_neither_contrast_nor_its_sign_matters() -> None:
    x = noise(2, 3, 16, 16)
    scale = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(hog(x * scale + 3, cell=8), hog(x, cell=8))
    torch.testing.assert_close(hog(-x, cell=8), hog(x, cell=8))


def test_each_colour_has_unit_norm_or_none() -> None:
    x = noise(2, 3, 16, 16)
    x[0, 1] = 4.0
    parts = hog(x, cell=8, bins=9).unflatten(2, (3, 9)).norm(dim=3)
    wanted = torch.ones_like(parts)
    wanted[0, :, 1] = 0
    torch.testing.assert_close(parts, wanted)
    torch.testing.assert_close(hog(x[1:], cell=8).square().mean(), torch.tensor(1 / 9, dtype=torch.float64))


def test_even_images_give_zeros() -> None:
    assert not hog(torch.full((1, 3, 8, 8), 2.0), cell=4).any()


def test_cells_lie_in_row_major_order() -> None:
    x = torch.zeros(1, 1, 8, 12)
    x[0, 0, 5:7, 9:11] = 1  # in the second row of cells, the third column
    assert hog(x, cell=4).norm(dim=2)[0].gt(0).nonzero().flatten().tolist() == [5]


def test_half_types_are_computed_in_float32_and_no_gradient_flows() -> None:
    x = noise(1, 3, 8, 8).bfloat16().requires_grad_()
    found = hog(x, cell=4)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, hog(x.float(), cell=4))


def test_cells_that_do_not_divide_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="no whole number of cells of 3"):
        hog(noise(1, 3, 8, 8), cell=3)
