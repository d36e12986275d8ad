"""Cells: a map of what is hidden, and its finer maps."""

import pytest
import torch

from selfsight.parts.cells import behind, enlarge, hidden_cells


def test_each_hidden_cell_lies_in_its_row_and_column() -> None:
    hidden = hidden_cells(torch.tensor([[1, 5], [8, 0]]), 9)
    assert [tuple(place) for place in hidden.nonzero().tolist()] == [(0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 2, 2)]


def test_a_number_of_cells_that_makes_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match="8 cells make no square"):
        hidden_cells(torch.tensor([[1]]), 8)


def test_finer_maps_are_constant_in_each_cell() -> None:
    coarse = torch.randn(2, 3, 3)
    fine = enlarge(coarse, 4)
    assert fine.shape == (2, 12, 12)
    for row in range(12):
        for column in range(12):
            assert torch.equal(fine[:, row, column], coarse[:, row // 4, column // 4])


def test_what_is_hidden_lies_behind_the_token_in_the_patches_type() -> None:
    patches, token = torch.randn(2, 3, 3, 4), torch.randn(1, 4)
    hidden = torch.rand(2, 3, 3) < 0.5
    seen = behind(token, patches, hidden)
    assert torch.equal(seen[hidden], token.expand(int(hidden.sum()), 4))
    assert torch.equal(seen[~hidden], patches[~hidden])
    assert behind(token, patches.bfloat16(), hidden).dtype == torch.bfloat16
