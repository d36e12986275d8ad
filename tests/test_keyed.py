"""Keyed random numbers: the published known answers, independence of the batch, and the distribution."""

import numpy as np
import torch
from scipy import stats

from selfsight.keyed import Key, permutation, philox, subset, uniforms, words


def key(indices: list[int], epoch: int = 0, seed: int = 0) -> Key:
    return Key(seed, torch.full((len(indices),), epoch), torch.tensor(indices))


def test_philox_gives_the_known_answers_of_random123() -> None:
    def run(counter: list[int], secret: tuple[int, int]) -> list[int]:
        cells = [np.array([[word]], dtype=np.uint64) for word in counter]
        return [int(cell[0, 0]) for cell in philox((cells[0], cells[1], cells[2], cells[3]), secret)]

    assert run([0] * 4, (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert run([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    digits = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert run(digits, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_a_sample_has_its_numbers_in_any_batch() -> None:
    together = uniforms(key([5, 17, 3]), "view0", 11)
    alone = uniforms(key([17]), "view0", 11)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(uniforms(key([17]), "view0", 5), alone[:, :5])


def test_each_part_of_the_key_matters() -> None:
    first = uniforms(key([1]), "view0", 8)
    for other in (key([2]), key([1], epoch=1), key([1], seed=1), key([1], seed=2**40)):
        assert not torch.equal(first, uniforms(other, "view0", 8))
    assert not torch.equal(first, uniforms(key([1]), "view1", 8))


def test_the_numbers_are_uniform_and_uncorrelated() -> None:
    drawn = uniforms(key(list(range(4000))), "a", 10)
    assert stats.kstest(drawn.numpy().ravel(), "uniform").pvalue > 1e-4
    assert drawn.min() >= 0
    assert drawn.max() < 1
    correlations = np.corrcoef(drawn.numpy().T) - np.eye(10)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    first, second = permutation(1000, seed=3, epoch=0), permutation(1000, seed=3, epoch=1)
    assert sorted(first) == list(range(1000))
    assert (first != second).mean() > 0.9
    assert np.array_equal(first, permutation(1000, seed=3, epoch=0))


def test_a_smaller_subset_lies_in_a_larger_one() -> None:
    small, large = subset(500, 50, seed=1), subset(500, 100, seed=1)
    assert set(small) <= set(large)
    assert len(set(small)) == 50
    assert list(small) == sorted(small)


def test_words_are_32_bit() -> None:
    drawn = words(0, np.zeros(9, dtype=np.uint64), np.arange(9, dtype=np.uint64), "s", 7)
    assert drawn.shape == (9, 7)
    assert int(drawn.max()) < 2**32
