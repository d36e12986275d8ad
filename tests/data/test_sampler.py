"""Which images an update takes: the same for any number of processes, micro-batches and restarts."""

import numpy as np
import pytest

from selfsight.data.order import Mixed
from selfsight.data.protocol import DataError
from selfsight.data.sampler import Sampler, shard


def update(n: int, step: int, *, world: int = 1, accumulate: int = 1, batch: int = 12, seed: int = 0) -> list[int]:
    ranks = [Sampler(n, batch_size=batch, seed=seed, rank=r, world=world, accumulate=accumulate) for r in range(world)]
    return [int(p) for m in range(accumulate) for sampler in ranks for p in sampler.micro(step, m)[0]]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (2, 3), (4, 3), (3, 2)])
def test_processes_and_micro_batches_join_to_the_same_batch(world: int, accumulate: int) -> None:
    for step in (0, 1, 7, 8, 9):
        assert update(101, step, world=world, accumulate=accumulate) == update(101, step)


def test_an_epoch_shows_each_image_at_most_once_and_drops_the_last() -> None:
    sampler = Sampler(101, batch_size=12, seed=3)
    assert sampler.steps_per_epoch == 8
    epochs = [np.concatenate([sampler.micro(e * 8 + s, 0)[0] for s in range(8)]) for e in range(2)]
    for seen in epochs:
        assert len(set(seen.tolist())) == 96
        assert set(seen.tolist()) <= set(range(101))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert [sampler.micro(step, 0)[1] for step in (0, 7, 8, 16)] == [0, 0, 1, 2]


def test_any_order_of_asking_gives_the_same() -> None:
    forward, backward = Sampler(50, batch_size=10, seed=1), Sampler(50, batch_size=10, seed=1)
    ahead = [forward.micro(step, 0)[0].tolist() for step in range(15)]
    assert [backward.micro(step, 0)[0].tolist() for step in reversed(range(15))] == ahead[::-1]
    assert update(50, 0, batch=10, seed=2) != ahead[0]


def test_shards_cover_everything_once_and_are_even() -> None:
    for n in (0, 1, 7, 12):
        shares = [shard(n, rank=r, world=5) for r in range(5)]
        assert [p for share in shares for p in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_errors_name_both_numbers_and_a_remedy() -> None:
    with pytest.raises(
        DataError, match="batch size 64 is larger than the data, 50 images; use --batch-size 48 or less"
    ):
        Sampler(50, batch_size=64, seed=0, world=4, accumulate=2)
    with pytest.raises(DataError, match=r"batch size 10 cannot be divided .* 3 micro-batches on 2 .* --batch-size 12"):
        Sampler(50, batch_size=10, seed=0, world=2, accumulate=3)
    with pytest.raises(DataError, match="use fewer processes or more images"):
        Sampler(3, batch_size=8, seed=0, world=4)


def test_two_kinds_of_images_are_shared_out_in_whole_units() -> None:
    """Each process and micro-batch has labelled and other images in one ratio; an epoch counts the labelled ones."""
    order = Mixed(labelled=40, share=8, ratio=3)
    for world, accumulate in ((1, 1), (2, 1), (2, 2)):
        ranks = [
            Sampler(200, batch_size=32, seed=0, rank=r, world=world, accumulate=accumulate, order=order)
            for r in range(world)
        ]
        assert [sampler.steps_per_epoch for sampler in ranks] == [5] * world
        for step in (0, 4, 5, 11):
            parts = [sampler.micro(step, m)[0] for m in range(accumulate) for sampler in ranks]
            assert all((part < 40).mean() == 0.25 for part in parts)
            assert np.array_equal(
                np.concatenate(parts), ranks[0].order(200, seed=0, round=step // 5)[step % 5 * 32 :][:32]
            )
