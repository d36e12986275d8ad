"""Weighted nearest neighbours against a naive loop, scikit-learn and the limits of its temperature."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from selfsight.errors import UserError
from selfsight.evaluation import knn
from selfsight.evaluation.features import Features
from selfsight.evaluation.knn import knn_accuracy, knn_score, knn_votes, neighbours


def some(n: int, d: int = 8, classes: int = 4, seed: int = 0, spread: float = 1.5) -> Features:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=rng)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return Features(centres[labels] + spread * torch.randn(n, d, generator=rng), labels, torch.arange(n))


def naive(train: Features, test: Features, k: int, temperature: float) -> list[int]:
    """The definition, one test image and one neighbour at a time, in Python's own floats."""
    keys = [row / math.sqrt(sum(v * v for v in row)) for row in train.x.double().numpy()]
    out = []
    for row in test.x.double().numpy():
        query = row / math.sqrt(sum(v * v for v in row))
        near = sorted(((float(np.dot(query, key)), i) for i, key in enumerate(keys)), key=lambda p: -p[0])[:k]
        votes: dict[int, float] = {}
        for cosine, i in near:
            label = int(train.labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
        out.append(max(votes, key=lambda c: votes[c]))
    return out


@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("block", [11, 84])  # uneven blocks; and one of 42 groups with an odd rest
def test_equals_the_definition(block: int, k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "QUERIES", 7)
    monkeypatch.setattr(knn, "KEYS", block)
    monkeypatch.setattr(knn, "GROUP", 2)
    train, test = some(103), some(31, seed=1)
    train, test = (f._replace(x=f.x.double()) for f in (train, test))
    got = knn_votes(train, test, k=k, temperature=temperature).argmax(1).tolist()
    assert got == naive(train, test, k, temperature)


def test_equals_scikit_learn() -> None:
    train, test = some(400), some(150, seed=1)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(train.x.numpy(), train.labels.numpy())
    expected = float(theirs.score(test.x.numpy(), test.labels.numpy()))
    assert 0.3 < expected < 0.99  # else the comparison says little
    assert knn_accuracy(train, test, k=20, temperature=0.07) == pytest.approx(expected, abs=1e-6)


def test_one_neighbour_is_the_nearest() -> None:
    train, test = some(60), some(20, seed=1)
    nearest = torch.nn.functional.cosine_similarity(test.x[:, None], train.x[None], dim=2).argmax(1)
    assert knn_votes(train, test, k=1).argmax(1).tolist() == train.labels[nearest].tolist()


def test_a_high_temperature_is_the_majority() -> None:
    train, test = some(90), some(40, seed=1)
    found = neighbours(train.x, test.x, 15)[1]
    counts = torch.nn.functional.one_hot(train.labels[found], 4).sum(1)
    votes = knn_votes(train, test, k=15, temperature=1e6, classes=4)
    assert votes.nan_to_num(neginf=0.0).round().long().tolist() == counts.tolist()


def test_a_training_image_is_its_own_first_neighbour() -> None:
    train = some(50)
    cosines, found = neighbours(train.x, train.x, 3)
    assert found[:, 0].tolist() == list(range(50))
    assert torch.allclose(cosines[:, 0], torch.ones(50))


def test_a_low_temperature_neither_overflows_nor_loses_the_nearest() -> None:
    train, test = some(40), some(10, seed=1)
    votes = knn_votes(train, test, k=5, temperature=1e-3)
    assert not votes.isnan().any()
    assert votes.argmax(1).tolist() == knn_votes(train, test, k=1).argmax(1).tolist()


def test_scale_of_the_features_does_not_matter() -> None:
    train, test = some(60), some(20, seed=1)
    larger = train._replace(x=train.x * torch.rand(60, 1).add(0.5))
    assert torch.allclose(knn_votes(train, test), knn_votes(larger, test), atol=1e-4)


def test_half_precision_features_are_compared_in_single() -> None:
    train, test = some(60), some(20, seed=1)
    half = [f._replace(x=f.x.half()) for f in (train, test)]
    exact = [f._replace(x=f.x.float()) for f in half]
    assert torch.equal(knn_votes(half[0], half[1]), knn_votes(exact[0], exact[1]))


def test_score_has_all_three_numbers() -> None:
    train, test = some(300, classes=8), some(100, classes=8, seed=1)
    got = knn_score(train, test, classes=8)
    assert got.samples == 100
    assert got.top5 is not None
    assert got.top1 < got.top5 <= 1


def test_a_class_without_a_vote_is_no_answer() -> None:
    train, test = some(300, classes=8), some(100, classes=8, seed=1)
    one = knn_score(train, test, k=1, classes=8)
    assert one.top5 == one.top1


def test_more_neighbours_than_features_is_refused() -> None:
    with pytest.raises(UserError, match="k is 20, but there are 5 training features"):
        knn_accuracy(some(5), some(3))
    with pytest.raises(UserError, match=r"temperature is 0\.0"):
        knn_accuracy(some(25), some(3), temperature=0.0)
