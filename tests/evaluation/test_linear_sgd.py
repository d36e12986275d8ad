"""The papers' linear probes: the encoder stands still, the classifier learns, the schedules are the papers'."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from selfsight.data.protocol import Source
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.linear_sgd import PROBES, Paper, classifier, linear_sgd, optimiser_spec
from selfsight.evaluation.stream import Labelled
from selfsight.evaluation.subject import crop_of
from selfsight.method import Clock
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]


def at(epoch: float, epochs: int) -> Clock:
    return Clock(step=round(epoch * 100), steps=100 * epochs, epoch=int(epoch), epochs=epochs)


def test_mocos_rate_falls_at_sixty_and_eighty_epochs() -> None:
    rate = optimiser_spec(PROBES["moco"]).lr
    values = [rate(at(epoch, 100)) for epoch in (0, 59.9, 60, 79.9, 80, 99)]
    assert values == pytest.approx([30, 30, 3, 3, 0.3, 0.3])


def test_maes_rate_warms_up_to_a_tenth_per_256() -> None:
    spec = optimiser_spec(PROBES["mae"])
    peak = 0.1 * PROBES["mae"].batch_size / 256
    assert spec.lr(at(9, 90)) == pytest.approx(peak)  # warm-up of ten epochs, a tenth of the training at most
    assert spec.lr(at(0, 90)) == 0
    assert spec.lr(at(49.5, 90)) == pytest.approx(peak / 2)


def test_classifiers_are_the_papers() -> None:
    norm, linear = classifier("mae", 512, 100, seed=0)
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert isinstance(classifier("moco", 512, 100, seed=0)[0], nn.Identity)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert linear.bias.abs().max() == 0
    assert torch.equal(linear.weight, classifier("moco", 512, 100, seed=0)[1].weight)
    assert not torch.equal(linear.weight, classifier("moco", 512, 100, seed=1)[1].weight)


def stacked(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.stack([source.read(i) for i in range(len(source))])
    return torch.from_numpy(images).float() / 255, torch.from_numpy(np.asarray(source.labels))


@pytest.mark.parametrize("case", [("moco", 40, None), ("mae", 200, 16.0)])
def test_learns_on_a_frozen_encoder(
    encoder, pictures: Make, monkeypatch: pytest.MonkeyPatch, case: tuple[Paper, int, float | None]
) -> None:
    paper, steps, lr = case
    encoder.train()
    encoder.norm.running_mean.zero_()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    train, test, plain = pictures(160), pictures(80, seed=1), plain_view(16, None)
    x, y = stacked(train)

    def without_augmentation(self: Lesson, **kwargs: object) -> Iterator[Labelled]:
        for step in range(steps):
            rows = torch.arange(32) + 32 * (step % 5)
            yield Labelled(x[rows], y[rows], Clock(step=step, steps=steps, epoch=step // 5, epochs=steps // 5))

    monkeypatch.setattr(Lesson, "batches", without_augmentation)
    losses: list[float] = []
    lesson = Lesson(
        train=train,
        test=test,
        crop=crop_of(plain),
        plain=plain,
        classes=4,
        epochs=steps // 5,
        batch_size=32,
        lr=lr,
        progress=lambda clock, loss: losses.append(loss),
    )
    got, probe = linear_sgd(encoder, lesson, paper=paper)
    assert got.top1 > 0.85
    assert (got.samples, len(losses)) == (80, steps)
    assert (probe.paper, probe.epochs, probe.batch_size) == (paper, steps // 5, 32)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_same_seed_same_score_and_fewer_images_than_a_batch(encoder, pictures: Make) -> None:
    plain = plain_view(16, None)
    pair = {"train": pictures(20), "test": pictures(40, seed=1)}
    lesson = Lesson(**pair, crop=crop_of(plain), plain=plain, classes=4, epochs=2, seed=7)
    scores = [linear_sgd(encoder, lesson) for _ in range(2)]
    assert scores[0] == scores[1]
    assert scores[0][1].batch_size == 20
