"""Perceptrons for pixels, and pixel propagation with sheet 14's limits."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from selfsight.parts.pixels import PixelPropagation, as_rows, pixel_mlp, spread


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def slow(x: Tensor, g: nn.Module, gamma: float) -> Tensor:
    """The paper's equations 3 and 4, with the code's normalised g, a pixel at a time."""
    b, _, h, w = x.shape
    values, out = g(x), torch.zeros_like(x)
    places = [(r, c) for r in range(h) for c in range(w)]
    for k in range(b):
        for i in places:
            for j in places:
                a, o, v = x[k, :, *i], x[k, :, *j], values[k, :, *j]
                share = torch.clamp((a @ o) / a.norm() / o.norm(), min=0) ** gamma
                out[k, :, *i] += share * v / v.norm()
    return out


@pytest.mark.parametrize("gamma", [1.0, 2.0, 5.0])
def test_propagation_equals_the_equation(gamma: float) -> None:
    x, g = torch.randn(2, 5, 2, 3, dtype=torch.float64), nn.Conv2d(5, 5, 1).double()
    torch.testing.assert_close(PixelPropagation(g, gamma=gamma)(x), slow(x, g, gamma))


def test_a_sharp_propagation_leaves_each_pixel_to_itself() -> None:
    """Sheet 14, check 3: without a transform and with γ → ∞, y is proportional to x."""
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    y = PixelPropagation(nn.Identity(), gamma=1e3)(x)
    torch.testing.assert_close(normalize(y, dim=1), normalize(x, dim=1), rtol=0, atol=1e-6)


def test_a_propagation_that_does_not_choose_gives_all_pixels_the_same() -> None:
    x = torch.randn(2, 8, 3, 3)
    y = PixelPropagation(nn.Identity(), gamma=0.0)(x)
    expected = normalize(x, dim=1).sum(dim=(2, 3), keepdim=True).expand_as(y)
    torch.testing.assert_close(y, expected)


def test_pixels_of_opposite_directions_do_not_mix() -> None:
    x = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(PixelPropagation(nn.Identity(), gamma=2.0)(x), x)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_are_finite_where_pixels_are_orthogonal(gamma: float) -> None:
    x = torch.eye(4).view(1, 4, 2, 2).clone().requires_grad_()
    y = PixelPropagation(nn.Conv2d(4, 4, 1), gamma=gamma)(x)
    assert torch.autograd.grad(y.square().sum(), x)[0].isfinite().all()


def test_shares_are_computed_in_float32_under_autocast() -> None:
    x, propagation = torch.randn(2, 8, 3, 3), PixelPropagation(nn.Identity(), gamma=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = propagation(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, propagation(x))
    assert propagation(x.bfloat16()).dtype == torch.float32


def test_a_pixels_perceptron_sees_no_other_pixel() -> None:
    head = pixel_mlp(4, 8, 6).eval()
    x = torch.randn(2, 4, 3, 3)
    changed = x.clone()
    changed[0, :, 1, 1] += 1
    moved = (head(x) != head(changed)).any(dim=1)
    assert moved.nonzero().tolist() == [[0, 1, 1]]
    assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Conv2d))
    assert [type(layer).__name__ for layer in pixel_mlp(4, 4)] == ["Conv2d"]


def test_rows_are_in_row_major_order() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert as_rows(x)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_spread_falls_to_nothing_in_a_collapse() -> None:
    free = spread(torch.randn(64, 32, 4, 4))
    assert free.item() == pytest.approx(32**-0.5, rel=0.02)
    assert spread(torch.randn(1, 32, 1, 1).expand(64, 32, 4, 4)).item() == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_mlp got the widths"):
        pixel_mlp(4)
    with pytest.raises(ValueError, match="gamma must be at least 0, not -1"):
        PixelPropagation(nn.Identity(), gamma=-1)
