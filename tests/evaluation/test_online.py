"""The probe of a run in training: within its own images, keyed, none where labels say nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from selfsight.data.protocol import Source
from selfsight.evaluation import online
from selfsight.evaluation.features import Features
from selfsight.evaluation.online import online_probe
from selfsight.keyed import permutation
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]


def test_bank_and_queries_are_apart_and_the_runs_own(encoder, pictures: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source, seen = pictures(70, size=32), []
    monkeypatch.setattr(online, "extract", lambda encoder, part, plain, **place: seen.append(part) or _features(part))
    probe = online_probe(encoder, plain_view(32, None), source, device=torch.device("cpu"), workers=0)
    assert probe is not None
    assert 0 <= probe() <= 1
    bank, queries = (set(part.positions.tolist()) for part in seen)
    assert (len(bank), len(queries)) == (50, 20)
    assert bank | queries == set(range(70))
    assert all(part.parent is source for part in seen)


def test_it_grows_no_further(encoder, pictures: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "BANK", 30)
    monkeypatch.setattr(online, "QUERIES", 12)
    sizes: list[int] = []
    monkeypatch.setattr(
        online, "extract", lambda encoder, part, plain, **place: sizes.append(len(part)) or _features(part)
    )
    probe = online_probe(encoder, plain_view(32, None), pictures(70, size=32), device=torch.device("cpu"), workers=0)
    assert probe is not None
    probe()
    assert sizes == [30, 12]


def test_labels_that_tell_nothing_apart_give_no_probe(encoder, pictures: Make) -> None:
    one = pictures(20, size=32)
    one.labels = np.zeros(20, dtype=np.int64)  # pyright: ignore[reportAttributeAccessIssue]
    assert online_probe(encoder, plain_view(32, None), one, device=torch.device("cpu"), workers=0) is None


@pytest.mark.parametrize("part", [0, 1])
def test_what_cannot_be_read_neither_asks_nor_answers(encoder, pictures: Make, part: int) -> None:
    """Of 14 images four ask: the bank of ten is smaller than k, and smaller yet without one that cannot be read."""
    drawn = permutation(14, seed=0, epoch=0, stream="probe").tolist()
    parts = (drawn[4:], drawn[:4])
    for broken, scored in (((parts[part][0],), True), (tuple(parts[part]), False)):
        source = pictures(14, broken=broken)
        probe = online_probe(encoder, plain_view(16, None), source, device=torch.device("cpu"), workers=0)
        assert probe is not None
        score = probe()
        assert score is not None and 0 <= score <= 1 if scored else score is None


def _features(part: Source) -> Features:
    assert part.labels is not None
    return Features(torch.eye(8)[part.labels], torch.from_numpy(np.array(part.labels)), torch.arange(len(part)))
