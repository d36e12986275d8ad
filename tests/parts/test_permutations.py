"""The puzzles' classes: permutations, distinct, and far from one another."""

import itertools

import pytest
import torch
from torch import Tensor

from selfsight.parts.permutations import maximal_hamming


def distances(table: Tensor) -> Tensor:
    """Between each two rows."""
    apart = (table[:, None] != table[None]).sum(-1)
    return apart[torch.triu_indices(len(table), len(table), 1).unbind()]


def slowly(count: int, tiles: int) -> list[tuple[int, ...]]:
    """The definition: greatest least distance, then greatest sum, then first in order."""
    every = list(itertools.permutations(range(tiles)))
    chosen = [every[0]]
    while len(chosen) < count:

        def far(one: tuple[int, ...], before: tuple[tuple[int, ...], ...] = tuple(chosen)) -> tuple[int, int]:
            apart = [sum(a != b for a, b in zip(one, other, strict=True)) for other in before]
            return min(apart), sum(apart)

        chosen.append(max(every, key=far))
    return chosen


@pytest.mark.parametrize(("count", "tiles"), [(6, 3), (24, 4), (30, 5)])
def test_it_is_the_greedy_choice(count: int, tiles: int) -> None:
    assert [tuple(row) for row in maximal_hamming(count, tiles).tolist()] == slowly(count, tiles)


@pytest.mark.parametrize(("count", "least"), [(24, 7), (100, 6), (1000, 5)])
def test_size_and_distances(count: int, least: int) -> None:
    table = maximal_hamming(count)
    assert table.shape == (count, 9)
    assert torch.equal(table.sort(dim=1).values, torch.arange(9).expand(count, 9))
    apart = distances(table)
    assert int(apart.min()) == least
    assert 7.95 < float(apart.double().mean()) < 9  # the paper's own sets: 8.08 for 100, 8.00 for 701; at least 2 and 3


def test_a_smaller_set_is_the_beginning_of_a_larger() -> None:
    assert torch.equal(maximal_hamming(100)[:24], maximal_hamming(24))
    first = maximal_hamming(24)
    first[0] = 0
    assert maximal_hamming(24)[0].tolist() == list(range(9))  # what is handed out is a copy


def test_sets_that_cannot_be() -> None:
    for count in (1, 362_881):
        with pytest.raises(ValueError, match=f"{count} permutations of 9 tiles cannot be chosen; take 2 to 362880"):
            maximal_hamming(count)
