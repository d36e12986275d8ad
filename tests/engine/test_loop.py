"""Several processes agree on leaving: a message at every slow update, else at every tenth."""

import pytest
import torch
from torch import Tensor

from selfsight.engine import loop
from selfsight.engine.machine import Machine


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What was sent to all; another process wishes nothing."""
    sent: list[list[int]] = []
    monkeypatch.setattr(loop.dist, "all_reduce", lambda asked, op: sent.append(asked.tolist()))
    return sent


def agreement(world: int) -> loop._Agreement:
    return loop._Agreement(Machine(torch.device("cpu"), 0, world, "32", torch.enable_grad))


@pytest.mark.parametrize(("seconds", "asked"), [(0.1, [1, 10, 20, 30]), (2.0, list(range(1, 31)))])
def test_slow_updates_are_agreed_on_one_by_one(
    seconds: float, asked: list[int], messages: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    agree, at = agreement(2), []
    for update in range(1, 31):
        now[0] += seconds
        before = len(messages)
        assert agree(True, False) == ([True, False] if update in asked else [False, False])
        at += [update] * (len(messages) - before)
    assert at == asked


def test_another_process_may_wish_and_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(asked: Tensor, op: object) -> None:
        asked.copy_(torch.tensor([0, 1, 1]))

    monkeypatch.setattr(loop.dist, "all_reduce", theirs)
    agree = agreement(2)
    assert [agree(False, False) for _ in range(3)] == [[False, True]] * 3


def test_one_process_sends_nothing(messages: list[list[int]]) -> None:
    assert agreement(1)(True, False, True) == [True, False, True]
    assert not messages
