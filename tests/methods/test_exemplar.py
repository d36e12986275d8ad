"""Exemplar-CNN: the loss over surrogate classes, and what in it is the price of not being invariant."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Exemplars
from selfsight.method import Clock, Objective, drive
from selfsight.methods.exemplar import Exemplar

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


class Flat(nn.Module):
    """An encoder that sees every pixel."""

    width, stride = 16, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 36, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).relu()

    def dense(self, x: Tensor) -> Tensor:
        return self(x)[..., None, None]


def method(classes: int = 7) -> Exemplar:
    torch.manual_seed(0)
    return Exemplar(Flat(), nn.Linear(16, classes))


def objective(of: Exemplar, x: Tensor, index: Tensor) -> Objective:
    seen: list[Objective] = []
    drive(of.step(Exemplars(x, torch.zeros(len(x), 4, 2), index), NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def test_the_loss_is_the_mean_cross_entropy_of_each_images_own_class() -> None:
    learner, x, index = method(), torch.randn(5, 3, 6, 6), torch.tensor([0, 6, 3, 3, 1])
    found = objective(learner, x, index)
    total, right = 0.0, 0
    with torch.no_grad():
        for image, label in zip(x, index.tolist(), strict=True):
            logits = learner.head(learner.encoder(image[None]))[0].tolist()
            total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
            right += logits.index(max(logits)) == label
    assert float(found.loss.detach()) == pytest.approx(total / 5, rel=1e-5)
    assert float(found.log["exemplar_accuracy"]) == pytest.approx(right / 5)
    assert found.watch["feature"].shape == (5, 16)


def test_a_zero_head_costs_the_log_of_the_classes() -> None:
    learner = method(2000)
    nn.init.zeros_(learner.head.weight)
    nn.init.zeros_(learner.head.bias)
    assert float(objective(learner, torch.randn(2, 3, 6, 6), torch.tensor([5, 1999])).loss.detach()) == pytest.approx(
        math.log(2000)
    )


def jensen_gap(logits: Tensor) -> Tensor:
    """The paper's equation 7: what the transforms' logits ``t k`` cost above those of their mean."""
    return logits.logsumexp(1).mean() - logits.mean(0).logsumexp(0)


def test_the_loss_splits_into_that_of_the_mean_feature_and_a_gap_that_is_never_negative() -> None:
    learner = method().double()
    x, label = torch.randn(12, 3, 6, 6, dtype=torch.float64), torch.full((12,), 4)
    with torch.no_grad():
        loss = objective(learner, x, label).loss
        logits = learner.head(learner.encoder(x))
        of_mean = cross_entropy(learner.head(learner.encoder(x).mean(0, keepdim=True)), label[:1])
        gap = jensen_gap(logits)
        assert float(gap) > 0
        assert float(loss) == pytest.approx(float(of_mean + gap), rel=1e-12)
        assert float(jensen_gap(logits[:1].expand(12, -1))) == pytest.approx(0, abs=1e-12)
        shifted = logits[:1] + torch.randn(12, 1, dtype=torch.float64)  # equal up to a constant each
        assert float(jensen_gap(shifted)) == pytest.approx(0, abs=1e-12)
