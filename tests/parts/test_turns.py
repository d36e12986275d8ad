"""Quarter turns: exact, counter-clockwise, in the order of a batch."""

import pytest
import torch

from selfsight.parts.turns import turn


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_turns_are_torch_rot90s(layout: torch.memory_format) -> None:
    x = torch.randn(5, 3, 7, 7).contiguous(memory_format=layout)
    turns = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1], [2, 2, 2, 2], [1, 0, 3, 2], [0, 0, 1, 1]])
    turned = turn(x, turns).unflatten(0, (4, 5))
    for k in range(4):
        for i in range(5):
            assert torch.equal(turned[k, i], torch.rot90(x[i], int(turns[i, k]), (1, 2)))


def test_turns_are_counter_clockwise_and_undo_each_other() -> None:
    x = torch.randn(2, 3, 5, 5)
    once = torch.ones(2, 1, dtype=torch.long)
    turned = turn(x, once)
    for row in range(5):
        for column in range(5):  # a quarter turn moves the right edge to the top
            assert torch.equal(turned[:, :, row, column], x[:, :, column, 4 - row])
    assert torch.equal(turn(turned, 3 * once), x)
    assert torch.equal(turn(turn(turn(turned, once), once), once), x)


def test_gradients_turn_back() -> None:
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    turns = torch.tensor([[0, 2], [1, 1]])
    assert torch.autograd.gradcheck(lambda x: turn(x, turns), (x,))
