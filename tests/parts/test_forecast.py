"""Contexts see what lies above and nothing below, bit for bit; grids turn as their names say."""

import pytest
import torch
from torch import Tensor, nn

from selfsight.parts.forecast import DIRECTIONS, MaskedConvolutions, RowGRU, turned

CONTEXTS = {"gru": lambda: RowGRU(6, 5), "masked": lambda: MaskedConvolutions(6, hidden=32)}
each = pytest.mark.parametrize("context", list(CONTEXTS))


def made(context: str) -> nn.Module:
    torch.manual_seed(0)
    return CONTEXTS[context]()


@each
@pytest.mark.parametrize("row", range(1, 7))
def test_later_rows_change_no_bit_of_earlier_contexts(context: str, row: int) -> None:
    """Sheet 2, check 2; sheet 3, check 2."""
    module, z = made(context), torch.randn(3, 7, 7, 6)
    other = z.clone()
    other[:, row:] = torch.randn(3, 7 - row, 7, 6)
    a, b = module(z), module(other)
    assert torch.equal(a[:, :row], b[:, :row])
    assert (a[:, row] != b[:, row]).any(dim=(1, 2)).all()  # its own row is seen


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_in_each_direction(direction: str) -> None:
    """The contexts of the grid as it was turned, put back: what lies ahead has no influence."""
    module, z = made("masked"), torch.randn(2, 7, 7, 6)
    ahead = {"down": (6, slice(None)), "up": (0, slice(None)), "right": (slice(None), 6), "left": (slice(None), 0)}
    other = z.clone()
    other[:, *ahead[direction]] += 1.0
    a, b = (back(module(turned(x, direction)), direction) for x in (z, other))
    changed = (a != b).any(dim=3).any(dim=0)
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[ahead[direction]] = True
    assert torch.equal(changed, expected)


def back(c: Tensor, direction: str) -> Tensor:
    grid = c.flip(1) if direction in ("up", "left") else c
    return grid.transpose(1, 2) if direction in ("right", "left") else grid


def test_how_far_masked_convolutions_see() -> None:
    """Five blocks: five rows up, five columns to each side."""
    module = made("masked")
    z = torch.randn(1, 9, 13, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(module(z)[0, 7, 6].sum(), z)
    seen = grad[0].abs().sum(dim=2) > 0
    expected = torch.zeros(9, 13, dtype=torch.bool)
    expected[2:8, 1:12] = True
    assert torch.equal(seen, expected)


def test_the_row_unit_is_torchs_gru_where_rows_have_one_place() -> None:
    module, z = RowGRU(6, 5), torch.randn(4, 7, 1, 6)
    gru = nn.GRU(6, 5, batch_first=True)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(module.input.weight[:, :, 0, 1])
        gru.bias_ih_l0.copy_(module.input.bias)
        gru.weight_hh_l0.copy_(module.state.weight[:, :, 1])
        gru.bias_hh_l0.copy_(module.state.bias)
    torch.testing.assert_close(module(z)[:, :, 0], gru(z[:, :, 0])[0])


def test_the_row_unit_sees_all_rows_above() -> None:
    module, z = made("gru"), torch.randn(1, 7, 7, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(module(z)[0, 6, 3].sum(), z)
    assert (grad[0].abs().sum(dim=2) > 0)[:, 3].all()
    assert (grad[0, 0].abs().sum(dim=1) > 0).all()


def test_grids_turn_as_their_directions_read_them() -> None:
    z = torch.arange(6.0).view(1, 2, 3, 1)
    rows = {way: turned(z, way)[0, :, :, 0].tolist() for way in DIRECTIONS}
    assert rows == {
        "down": [[0, 1, 2], [3, 4, 5]],
        "up": [[3, 4, 5], [0, 1, 2]],
        "right": [[0, 3], [1, 4], [2, 5]],
        "left": [[2, 5], [1, 4], [0, 3]],
    }
