"""Signs of life: who falls silent is missed, who was never heard of is not; and whose fault an error is."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch

from selfsight.engine import pulse
from selfsight.engine.launch import PREPARED
from selfsight.engine.machine import Machine
from selfsight.errors import ToldElsewhere, TrainingError

Missed = list[tuple[int, list[int]]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Missed], pulse._Pulse]]:
    """``start(rank, missed)``: one of three processes, which notes in ``missed`` instead of leaving."""
    monkeypatch.setattr(pulse, "BEAT", 0.05)
    monkeypatch.setattr(pulse, "SILENCE", 0.4)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    ports: list[object] = []

    def broadcast(said: list[object], src: int) -> None:
        ports.extend(said if not ports else ())
        said[:] = ports[:1]

    monkeypatch.setattr(pulse.dist, "broadcast_object_list", broadcast)
    begun: list[pulse._Pulse] = []

    def one(rank: int, missed: Missed) -> pulse._Pulse:
        place = Machine(torch.device("cpu"), rank, 3, "32", nullcontext)
        begun.append(pulse._Pulse(place, lambda rank, silent, world: missed.append((rank, silent))))
        return begun[-1]

    yield one
    for each in begun:
        each.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_who_falls_silent_is_missed_and_who_was_never_heard_of_is_not(
    start: Callable[[int, Missed], pulse._Pulse],
) -> None:
    missed: Missed = []
    first, second = start(0, missed), start(1, missed)  # the third never comes
    until(lambda: 1 in first.heard and 0 in second.heard)
    time.sleep(0.8)
    assert not missed
    second.stop()
    until(lambda: bool(missed))
    assert missed == [(0, [1])]


def test_the_first_one_is_missed_by_the_others(start: Callable[[int, Missed], pulse._Pulse]) -> None:
    missed: Missed = []
    first, second, third = (start(rank, missed) for rank in range(3))
    until(lambda: 0 in second.heard and 0 in third.heard)
    first.stop()
    until(lambda: len(missed) == 2)
    assert sorted(missed) == [(1, [0]), (2, [0])]


def test_strangers_datagrams_count_for_nothing(start: Callable[[int, Missed], pulse._Pulse]) -> None:
    """Nor does one's own number: nothing would renew it, and the run would end when it falls silent."""
    missed: Missed = []
    first, second = start(0, missed), start(1, missed)
    until(lambda: 1 in first.heard and 0 in second.heard)
    ports = [each.socket.getsockname()[1] for each in (first, second)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for port in ports:
            for said in (b"0", b"1", b"2", b" 2", b"none 2", b"\xff", f"{first.word} 3".encode()):
                stranger.sendto(said, ("127.0.0.1", port))
        stranger.sendto(f"{first.word} 0".encode(), ("127.0.0.1", ports[0]))
        stranger.sendto(f"{first.word} 2".encode(), ("127.0.0.1", ports[1]))
    time.sleep(0.8)
    assert not missed
    assert (set(first.heard), set(second.heard)) == ({1}, {0})


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4711"


@pytest.mark.parametrize(
    ("error", "kind", "prepared"),
    [
        (RuntimeError(GLOO), TrainingError, False),
        (RuntimeError(GLOO), ToldElsewhere, True),  # the one that started the processes tells
        (RuntimeError("shapes do not match"), RuntimeError, False),
        (TrainingError("gloo is in its text"), TrainingError, False),
    ],
)
def test_what_another_process_is_to_blame_for_is_said_in_one_line(
    error: RuntimeError, kind: type, prepared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet:
        def stop(self) -> None: ...

    monkeypatch.setattr(pulse, "_Pulse", lambda machine: Quiet())
    if prepared:
        monkeypatch.setenv(PREPARED, "1")
    with pytest.raises(RuntimeError) as raised, pulse.together(Machine(torch.device("cpu"), 0, 2, "32", nullcontext)):
        raise error
    assert type(raised.value) is kind
    if raised.value is not error:
        assert "another of the 2 processes has left the run" in str(raised.value)
        assert "--resume" in str(raised.value)
