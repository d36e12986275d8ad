"""The contract's own behaviour: the order of events, what is sent back, and where the context reaches."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from selfsight.method import Clock, Method, Objective, Steps, drive

NOW = Clock(step=3, steps=10, epoch=0, epochs=2)


class Plain(nn.Module):
    width, stride = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def dense(self, x: Tensor) -> Tensor:
        return x


class Two(Method[Tensor]):
    """Yields twice and remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Plain()
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.sent: list[bool] = []
        self.events: list[str] = []

    def step(self, batch: Tensor, clock: Clock) -> Steps:
        self.events.append("forward")
        loss = self.encoder(batch).square().mean()
        self.sent.append((yield Objective(loss)))
        self.events.append("between")
        self.sent.append((yield Objective(self.encoder(batch).mean())))
        self.events.append("after")


def test_drive_hands_over_and_sends_back() -> None:
    method, answers = Two(), iter([True, False])

    def update(objective: Objective) -> bool:
        method.events.append("update")
        return next(answers)

    drive(method.step(torch.ones(1, 2), NOW), update)
    assert method.sent == [True, False]
    assert method.events == ["forward", "update", "between", "update", "after"]


def test_the_context_is_round_the_method_and_not_round_the_update() -> None:
    inside = False
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def around() -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    class Looks(Two):
        def step(self, batch: Tensor, clock: Clock) -> Steps:
            seen.append(("before", inside))
            yield Objective(self.encoder(batch).mean())
            seen.append(("after", inside))

    def update(objective: Objective) -> bool:
        seen.append(("update", inside))
        return True

    drive(Looks().step(torch.ones(1, 2), NOW), update, around)
    assert seen == [("before", True), ("update", False), ("after", True)]


def test_trainables_are_what_requires_gradients() -> None:
    names = [name for name, _ in Two().trainables()["main"]]
    assert names == ["encoder.linear.weight", "encoder.linear.bias"]


def test_an_error_in_the_update_reaches_the_caller() -> None:
    def update(objective: Objective) -> bool:
        raise OverflowError("here")

    method = Two()
    with pytest.raises(OverflowError, match="here"):
        drive(method.step(torch.ones(1, 2), NOW), update)
    assert method.events == ["forward"]


def test_the_clock() -> None:
    assert NOW.progress == 0.3
    assert NOW.steps_per_epoch == 5
