"""The sliding window: each image as often as its neighbours, near in time, exact from any round, on any process."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from selfsight.data.order import Mixed, Order, Shuffled, SlidingWindow
from selfsight.data.protocol import DataError
from selfsight.data.sampler import Sampler
from selfsight.keyed import permutation


def test_each_image_is_in_the_same_number_of_windows() -> None:
    """Sheet 9, check b: over N / S windows each of N images is shown W / S times."""
    order, n = SlidingWindow(24, 6), 60
    for lap in range(3):
        shown = Counter(int(p) for r in range(lap * 10, lap * 10 + 10) for p in order(n, seed=4, round=r))
        assert shown == dict.fromkeys(range(n), 4)


def test_neighbouring_windows_share_all_but_a_stride() -> None:
    order = SlidingWindow(24, 6)
    windows = [order(60, seed=4, round=r) for r in range(10)]
    for one, two in pairwise(windows):
        assert len(set(one.tolist()) & set(two.tolist())) == 18
        assert one.tolist() != two.tolist()
    assert all(len(set(w.tolist())) == 24 for w in windows)
    assert sorted(windows[0]) != windows[0].tolist(), "a window is shuffled"


def test_each_lap_has_an_array_of_its_own() -> None:
    order = SlidingWindow(24, 6)
    sets = [frozenset(order(60, seed=4, round=r).tolist()) for r in (0, 10, 20)]
    assert len(set(sets)) == 3
    assert order(60, seed=5, round=0).tolist() != order(60, seed=4, round=0).tolist()


@pytest.mark.parametrize(("n", "size", "stride"), [(61, 24, 7), (25, 24, 24), (10, 10, 3), (7, 30, 4)])
def test_sizes_that_do_not_divide(n: int, size: int, stride: int) -> None:
    order = SlidingWindow(size, stride)
    rounds = -(-n // stride)
    shown = Counter(int(p) for r in range(rounds) for p in order(n, seed=0, round=r))
    assert set(shown) == set(range(n))
    for r in range(rounds):
        assert len(set(order(n, seed=0, round=r).tolist())) == order.length(n) == min(size, n)
    if n > size:
        assert max(shown.values()) <= -(-size // stride) + 1


def test_shuffled_is_the_permutation_of_the_epoch() -> None:
    assert isinstance(Shuffled(), Order)
    assert isinstance(SlidingWindow(4, 2), Order)
    assert Shuffled()(50, seed=3, round=7).tolist() == permutation(50, seed=3, epoch=7).tolist()


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (2, 3)])
def test_processes_and_micro_batches_join(world: int, accumulate: int) -> None:
    order = SlidingWindow(40, 8)

    def update(step: int, world: int, accumulate: int) -> list[int]:
        ranks = [
            Sampler(101, batch_size=12, seed=0, rank=r, world=world, accumulate=accumulate, order=order)
            for r in range(world)
        ]
        return [int(p) for m in range(accumulate) for sampler in ranks for p in sampler.micro(step, m)[0]]

    for step in (0, 2, 3, 17, 50):
        assert update(step, world, accumulate) == update(step, 1, 1)


def test_a_round_is_a_pass_and_an_epoch_is_still_the_data() -> None:
    sampler = Sampler(101, batch_size=12, seed=0, order=SlidingWindow(40, 8))
    assert (sampler.steps_per_epoch, sampler.steps_per_round) == (8, 3)
    for r in range(30):
        parts = [sampler.micro(3 * r + s, 0) for s in range(3)]
        positions = np.concatenate([p for p, _ in parts])
        assert {now for _, now in parts} == {r} == {sampler.round(3 * r + s) for s in range(3)}
        assert len(set(positions.tolist())) == 36, "an image twice in a round would have the same views twice"
        assert set(positions.tolist()) <= set(SlidingWindow(40, 8)(101, seed=0, round=r).tolist())
    backward = [sampler.micro(step, 0)[0].tolist() for step in (50, 7, 8)]
    fresh = Sampler(101, batch_size=12, seed=0, order=SlidingWindow(40, 8))
    assert [fresh.micro(step, 0)[0].tolist() for step in (50, 7, 8)] == backward


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="a window of 4 images cannot slide by 5"):
        SlidingWindow(4, 5)
    with pytest.raises(DataError, match="batch size 50 is larger than what a round shows, 40 images"):
        Sampler(101, batch_size=50, seed=0, order=SlidingWindow(40, 8))


@pytest.mark.parametrize(("labelled", "others", "share", "ratio"), [(20, 100, 4, 2), (50, 60, 5, 3), (8, 64, 8, 1)])
def test_every_unit_of_a_mixed_order_has_one_labelled_image(labelled: int, others: int, share: int, ratio: int) -> None:
    order, n = Mixed(labelled=labelled, share=share, ratio=ratio), labelled + others
    seen = np.zeros(n, dtype=np.int64)
    for number in range(40):
        positions = order(n, seed=3, round=number)
        assert len(positions) == order.length(n) == len(set(positions.tolist()))
        units = positions.reshape(-1, order.unit)
        assert (units[:, 0] < labelled).all()
        assert (units[:, 1:] >= labelled).all()
        assert len(units) % share == 0
        assert np.array_equal(positions, order(n, seed=3, round=number))
        np.add.at(seen, positions, 1)
    assert order.updates(n, share * order.unit) == labelled // share
    for kind in (seen[:labelled], seen[labelled:]):  # each image about as often as any other of its kind
        assert kind.min() >= 1
        assert abs(kind - kind.mean()).max() <= 4 * max(kind.mean(), 1) ** 0.5


def test_the_scarcer_kind_is_shown_whole_in_each_round_and_the_other_in_parts() -> None:
    order = Mixed(labelled=8, share=4, ratio=2)
    first, second, third = (order(8 + 32, seed=0, round=number) for number in range(3))
    assert set(first[first < 8].tolist()) == set(range(8))
    halves = set(first[first >= 8].tolist()), set(second[second >= 8].tolist())
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(8, 40))
    assert set(third[third >= 8].tolist()) != halves[0]
