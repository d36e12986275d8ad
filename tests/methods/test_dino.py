"""DINO's order of events: the loss, the frozen layer, then centre and teacher, once for each update."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import MultiCrop
from selfsight.method import Clock, Objective, drive
from selfsight.methods.dino import DINO
from selfsight.parts.prototypes import DistillationHead
from selfsight.schedules import constant, linear


class Noisy(nn.Module):
    """An encoder with dropout and something that looks like timm's drop path."""

    width, stride = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.0)
        self.path = nn.Identity()
        self.path.drop_prob = 0.3  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.dense(x).mean(dim=(2, 3)))

    def dense(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()


def clock(step: int, steps: int = 100, epochs: int = 10) -> Clock:
    return Clock(step=step, steps=steps, epoch=step * epochs // steps, epochs=epochs)


def crops(b: int = 4, small: int = 2, seed: int = 0) -> MultiCrop:
    generator = torch.Generator().manual_seed(seed)
    large = tuple(torch.randn(b, 3, 8, 8, generator=generator) for _ in range(2))
    little = tuple(torch.randn(b, 3, 5, 5, generator=generator) for _ in range(small))
    return MultiCrop(large, little, torch.arange(b))


def dino(encoder: nn.Module | None = None) -> DINO:
    torch.manual_seed(0)
    head = DistillationHead(nn.Linear(4, 6), 6, 9)
    return DINO(encoder or Noisy(), head, teacher_temperature=linear(0.04, 0.07, epochs=5), momentum=constant(0.9))


def run(method: DINO, batch: MultiCrop, at: Clock, *, lr: float = 0.1, moves: bool = True) -> Objective:
    seen: list[Objective] = []

    def update(objective: Objective) -> bool:
        objective.loss.backward()
        seen.append(objective)
        if moves:
            with torch.no_grad():
                for _, p in method.trainables()["main"]:
                    if not any(p is held for held in objective.hold):
                        p.sub_(lr * p.grad)
            method.zero_grad()
        return moves

    drive(method.step(batch, at), update)
    (objective,) = seen
    return objective


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(dim=-1, keepdim=True)


def test_the_loss_is_the_papers_pseudo_code() -> None:
    method, batch = dino(), crops()
    method.centre.value.copy_(torch.linspace(-0.2, 0.2, 9))
    with torch.no_grad():
        teacher = [method.teacher_head(method.encoder(x)).double() for x in batch.large]
        student = [method.student_head(method.student(x)).double() for x in (*batch.large, *batch.small)]
        terms = [
            -(softmax((t - method.centre.value) / 0.052) * softmax(s / 0.1).log()).sum(dim=1).mean()
            for u, t in enumerate(teacher)
            for v, s in enumerate(student)
            if u != v
        ]
    assert len(terms) == 2 * 4 - 2
    loss = run(method, batch, clock(20)).loss.detach()  # 2 of 5 epochs of warm-up: 0.04 + 0.4 * 0.03
    assert float(loss) == pytest.approx(float(sum(terms)) / 6, rel=1e-4)


def test_the_teacher_starts_as_the_student_without_noise_and_gets_no_gradient() -> None:
    encoder = Noisy()
    encoder.dropout.p = 0.4
    method = dino(encoder)
    assert encoder.dropout.p == 0.4
    assert encoder.path.drop_prob == 0.3
    assert method.encoder.dropout.p == 0.0
    assert method.encoder.path.drop_prob == 0.0
    assert torch.equal(method.encoder.conv.weight, encoder.conv.weight)
    trained = {name.split(".")[0] for name, _ in method.trainables()["main"]}
    assert trained == {"student", "student_head"}


def test_after_the_update_the_centre_moves_and_the_teacher_follows() -> None:
    method, batch = dino(), crops()
    before = copy.deepcopy(method)
    with torch.no_grad():
        mean = torch.cat([before.teacher_head(before.encoder(x)) for x in batch.large]).mean(dim=0)
    run(method, batch, clock(20))
    torch.testing.assert_close(method.centre.value, 0.1 * mean)
    for teacher, student, old in (
        (method.encoder, method.student, before.encoder),
        (method.teacher_head, method.student_head, before.teacher_head),
    ):
        for t, s, o in zip(teacher.parameters(), student.parameters(), old.parameters(), strict=True):
            torch.testing.assert_close(t.detach(), 0.9 * o.detach() + 0.1 * s.detach())
    assert (method.student.conv.weight - before.student.conv.weight).abs().max() > 0


def test_an_update_that_was_not_made_moves_nothing() -> None:
    method = dino()
    before = copy.deepcopy(method)
    run(method, crops(), clock(20), moves=False)
    assert torch.equal(method.centre.value, before.centre.value)
    for after, old in zip(method.encoder.parameters(), before.encoder.parameters(), strict=True):
        assert torch.equal(after, old)


def test_accumulation_equals_the_large_batch() -> None:
    """The gradient is the mean of the parts', the centre moves once by the mean over both."""
    batch = crops(b=6)
    whole, parts = dino(), dino()
    before = parts.student.conv.weight.detach().clone()
    run(whole, batch, clock(20))
    for part in (slice(0, 3), slice(3, 6)):
        large, small = (tuple(x[part] for x in sized) for sized in (batch.large, batch.small))
        run(parts, MultiCrop(large, small, batch.index[part]), clock(20), lr=0.05, moves=part.start > 0)
    assert (parts.student.conv.weight - before).abs().max() > 1e-4
    for name, x in parts.state_dict().items():
        torch.testing.assert_close(x, whole.state_dict()[name], msg=name)


def test_the_last_layer_stands_still_in_the_first_epoch() -> None:
    method = dino()
    rows = method.student_head.last.weight.detach().clone()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(9))
    for step in range(3):
        assert run(method, crops(seed=step), clock(step)).hold == method.student_head.last_layer
    assert torch.equal(method.student_head.last.weight, rows)
    assert run(method, crops(), clock(10)).hold == ()
    assert (method.student_head.last.weight - rows).abs().max() > 1e-5
    torch.testing.assert_close(method.student_head.last.weight.norm(dim=1), torch.ones(9))


def test_an_overflow_in_the_teacher_does_not_stay_in_the_centre() -> None:
    method, batch = dino(), crops()
    run(method, batch, clock(20), lr=0.0)
    before = method.centre.value.clone()
    bad = MultiCrop((batch.large[0] * math.inf, batch.large[1]), (), batch.index)
    run(method, bad, clock(21), moves=False)
    run(method, batch, clock(21), lr=0.0)
    assert method.centre.value.isfinite().all()
    assert (method.centre.value - before).abs().max() > 0


def test_what_the_monitors_see() -> None:
    watch = run(dino(), crops(), clock(0)).watch
    assert {name: tuple(x.shape) for name, x in watch.items()} == {
        "feature": (4, 4),
        "projection": (8, 4),
        "teacher": (8, 9),
    }
    torch.testing.assert_close(watch["teacher"].sum(dim=1), torch.ones(8))
    assert not any(x.requires_grad for x in watch.values())
