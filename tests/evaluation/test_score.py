"""Top-1, top-5 and per-class accuracy."""

import pytest
import torch

from selfsight.errors import UserError
from selfsight.evaluation.score import score


def test_every_answer_right_is_one() -> None:
    labels = torch.arange(7)
    got = score(torch.eye(7), labels)
    assert (got.top1, got.top5, got.per_class, got.samples) == (1.0, 1.0, 1.0, 7)


def test_per_class_weighs_rare_classes_like_frequent_ones() -> None:
    labels = torch.tensor([0] * 9 + [1])
    answers = torch.tensor([[1.0, 0.0]]).repeat(10, 1)  # always class 0
    got = score(answers, labels)
    assert got.top1 == pytest.approx(0.9)
    assert got.per_class == pytest.approx(0.5)


def test_a_class_absent_from_the_test_images_does_not_lower_per_class() -> None:
    assert score(torch.eye(4)[:2], torch.tensor([0, 1])).per_class == 1.0


def test_top5_counts_the_five_best_and_no_class_without_answer() -> None:
    answers = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    assert score(answers, torch.tensor([4])).top5 == 1.0
    assert score(answers, torch.tensor([5])).top5 == 0.0
    silent = torch.tensor([[6.0, 5.0] + [-torch.inf] * 4])
    assert score(silent, torch.tensor([2])).top5 == 0.0


def test_top5_is_not_given_where_it_says_nothing() -> None:
    assert score(torch.eye(5), torch.arange(5)).top5 is None


def test_no_test_image_is_refused() -> None:
    with pytest.raises(UserError, match="0 labelled test images"):
        score(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
