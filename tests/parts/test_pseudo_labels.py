"""Filter and balance: each class exactly as many copies as asked for, of its most confident images."""

import numpy as np
import pytest

from selfsight.parts.pseudo_labels import Balance, balanced


def drawn(n: int = 400, classes: int = 5) -> np.ndarray:
    """Answers in which class 0 is common and class 4 is rare."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((n, classes)) - np.linspace(0, 3, classes)
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def kept(answers: np.ndarray, *, threshold: float, per_class: int, order: np.ndarray) -> Balance:
    predicted, confidence, classes = answers.argmax(axis=1), answers.max(axis=1), answers.shape[1]
    return balanced(predicted, confidence, classes=classes, threshold=threshold, per_class=per_class, order=order)


@pytest.mark.parametrize("per_class", [1, 7, 30, 250])
def test_every_class_gets_exactly_its_number(per_class: int) -> None:
    answers, order = drawn(), np.random.default_rng(1).permutation(400)
    found = kept(answers, threshold=0.3, per_class=per_class, order=order)
    label, confidence = answers.argmax(axis=1), answers.max(axis=1)
    assert (np.bincount(label, weights=found.copies, minlength=5) == per_class).all()
    assert (confidence[found.copies > 0] >= 0.3).all()
    for k in range(5):
        mine = (label == k) & (confidence >= 0.3)
        assert found.confident[k] == mine.sum()
        copies = found.copies[mine]
        if mine.sum() > per_class:  # the most confident alone, once
            best = np.sort(confidence[mine])[::-1][:per_class]
            assert sorted(confidence[(label == k) & (found.copies == 1)], reverse=True) == best.tolist()
            assert copies.max() == 1
            assert found.least[k] == best[-1]
        else:  # all of them, and none more than once oftener than another
            assert copies.max() - copies.min() <= 1
            assert copies.min() >= 1
            assert found.least[k] == confidence[mine].min()


def test_who_gets_one_more_goes_by_the_order() -> None:
    answers = np.tile([0.9, 0.1], (3, 1))
    first = kept(answers, threshold=0.5, per_class=4, order=np.array([2, 0, 1])).copies
    other = kept(answers, threshold=0.5, per_class=4, order=np.array([1, 0, 2])).copies
    assert first.tolist() == [1, 1, 2]
    assert other.tolist() == [1, 2, 1]
    fewer = kept(answers, threshold=0.5, per_class=1, order=np.array([2, 0, 1])).copies
    assert fewer.tolist() == [0, 0, 1]  # equally confident


def test_the_threshold_is_kept_and_a_class_without_images_stays_empty() -> None:
    answers = np.array([[0.3, 0.29, 0.41], [0.3, 0.25, 0.45], [0.2, 0.1, 0.7], [0.5, 0.3, 0.2]])
    found = kept(answers, threshold=0.45, per_class=4, order=np.arange(4))
    assert found.copies.tolist() == [0, 2, 2, 4]  # 0.45 itself is confident enough
    assert found.confident.tolist() == [1, 0, 2]
    assert np.isnan(found.least[1])
    assert not kept(answers, threshold=0.8, per_class=4, order=np.arange(4)).copies.any()
    with pytest.raises(ValueError, match="--per-class is 0"):
        kept(answers, threshold=0.3, per_class=0, order=np.arange(4))
