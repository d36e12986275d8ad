"""The update that all protocols share: rate, clipping and who is told."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD

from selfsight.data.protocol import Source
from selfsight.engine.optimisers import build_optimiser
from selfsight.evaluation.lesson import Lesson
from selfsight.method import Clock
from selfsight.recipes.recipe import OptimiserSpec, decay_all
from selfsight.schedules import constant
from selfsight.views.pipelines import plain_view

NOW = Clock(step=0, steps=2, epoch=0, epochs=1)


@pytest.mark.parametrize(("clip", "moved"), [(None, 5.0), (1.0, 0.5)])
def test_gradients_are_clipped_where_the_paper_does(
    pictures: Callable[..., Source], clip: float | None, moved: float
) -> None:
    told: list[tuple[Clock, float]] = []
    plain = plain_view(16, None)
    lesson = Lesson(
        train=pictures(8),
        test=pictures(8),
        crop=plain,
        plain=plain,
        classes=4,
        progress=lambda clock, loss: told.append((clock, loss)),
    )
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    spec = OptimiserSpec(build=SGD, lr=constant(0.5), weight_decay=constant(0.0), groups=decay_all, clip=clip)
    optimiser = build_optimiser(spec, layer.named_parameters())
    loss = 3 + layer(torch.tensor([[6.0, 8.0]])).sum()  # its gradient's norm is 10
    lesson.update_(optimiser, spec, loss, NOW)
    assert layer.weight.norm().item() == pytest.approx(moved, rel=1e-4)
    assert told == [(NOW, 3.0)]


def test_the_batch_is_what_is_asked_or_usual_or_all(pictures: Callable[..., Source]) -> None:
    plain = plain_view(16, None)
    given = {"train": pictures(20), "test": pictures(8), "crop": plain, "plain": plain, "classes": 4}
    assert Lesson(**given).batch(16) == 16
    assert Lesson(**given).batch(64) == 20
    assert Lesson(**given, batch_size=4).batch(16) == 4
