"""What is counted between two lines: a run of several processes that goes on writes what the whole one wrote."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from selfsight.engine import tallies
from selfsight.engine.tallies import Sums
from selfsight.method import Objective

LOSSES = [[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 7.0, 11.0]]
"""Of two processes, four updates each."""


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """``both(work)``: ``work(rank)`` of two processes, threads here, whose ``mean`` is over both."""
    meeting, said = threading.Barrier(2, timeout=30), {}
    place = threading.local()

    def mean(x: Tensor) -> Tensor:
        said[place.rank] = x
        meeting.wait()
        joined = (said[0] + said[1]) / 2
        meeting.wait()
        return joined

    def one(rank: int, work: Callable[[int], object]) -> object:
        place.rank = rank
        return work(rank)

    def run(work: Callable[[int], object]) -> list:
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(one, (0, 1), (work, work)))

    monkeypatch.setattr(tallies.distributed, "mean", mean)
    return run


def counted(losses: list[float], state: dict[str, Tensor] | None = None) -> Sums:
    sums = Sums(torch.device("cpu"))
    sums.restore(state or {})
    for loss in losses:
        sums.add(Objective(torch.tensor(loss), log={"double": torch.tensor(2 * loss)}))
    return sums


@pytest.mark.parametrize("saved_at", [0, 1, 3])
def test_the_first_line_after_a_resume_is_that_of_the_whole_run(both: Callable[..., list], saved_at: int) -> None:
    whole = both(lambda rank: counted(LOSSES[rank]).take())
    assert whole[0] == {"loss": 5.125, "double": 10.25} == whole[1]
    state, _ = both(lambda rank: counted(LOSSES[rank][:saved_at]).state())  # the first one writes, all of them read
    assert both(lambda rank: counted(LOSSES[rank][saved_at:], state).take()) == whole
