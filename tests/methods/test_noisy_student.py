"""Noisy Student's step: whose target an image has, what the average follows, and no noise where none belongs."""

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.losses.self_training import smoothed, tempered
from selfsight.method import Clock, Objective, drive
from selfsight.methods.noisy_student import NoisyStudent, follow_

LABELS = torch.tensor([2, 0, 1])
ANSWERS = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
ROWS = torch.tensor([0, 1, 1, 1, 0, 1])  # of places 3 to 8
INDEX = torch.tensor([1, 4, 3, 2, 8, 7])


class Flat(nn.Module):
    width, stride = 8, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(1)))

    def dense(self, x: Tensor) -> Tensor:
        return self(x)[..., None, None]


def student(**options: object) -> NoisyStudent:
    torch.manual_seed(0)
    told = {
        "classes": 3,
        "ratio": 2,
        "dropout": 0.0,
        "smoothing": 0.1,
        "labels": LABELS,
        "answers": ANSWERS.__getitem__,
        "rows": ROWS,
    }
    return NoisyStudent(Flat(), **{**told, **options})  # pyright: ignore


def clock(step: int) -> Clock:
    return Clock(step=step, steps=10**6, epoch=0, epochs=1)


def taken(method: NoisyStudent, x: Tensor, *, step: int = 0, moved: bool = True) -> Objective:
    seen: list[Objective] = []

    def update(objective: Objective) -> bool:
        seen.append(objective)
        objective.loss.backward()
        with torch.no_grad():
            for p in method.online.parameters():  # pyright: ignore[reportAttributeAccessIssue]
                p.add_(1.0)
        return moved

    drive(method.step(Images(x, INDEX), clock(step)), update)
    return seen[0]


def test_an_image_has_its_label_or_its_teachers_answer() -> None:
    soft = student(temperature=2.0).targets(INDEX)
    torch.testing.assert_close(soft[[0, 3]], smoothed(LABELS[[1, 2]], 3, smoothing=0.1))
    torch.testing.assert_close(soft[[1, 2, 4, 5]], tempered(ANSWERS[[1, 0, 1, 0]], 2.0))
    hard = student(hard=True).targets(INDEX)
    torch.testing.assert_close(hard[[1, 2, 4, 5]], smoothed(torch.tensor([0, 2, 0, 2]), 3, smoothing=0.1))
    alone = student(answers=None, rows=None, ratio=0).targets(torch.tensor([2, 0]))
    torch.testing.assert_close(alone, smoothed(torch.tensor([1, 2]), 3, smoothing=0.1))


def test_the_loss_is_that_of_the_online_network() -> None:
    method, x = student(), torch.randn(6, 3, 2, 2)
    logits = method.online_classifier(method.online(x)).detach()
    found = taken(method, x)
    by_hand = -(method.targets(INDEX) * logits.log_softmax(1)).sum(1)
    labelled, others = by_hand[[0, 3]].mean(), by_hand[[1, 2, 4, 5]].mean()
    assert float(found.loss.detach()) == pytest.approx(float(labelled + 2 * others), rel=1e-5)
    assert all(p.grad is not None for p in method.online.parameters())  # pyright: ignore[reportAttributeAccessIssue]
    assert all(p.grad is None for p in method.encoder.parameters())  # pyright: ignore[reportAttributeAccessIssue]


def test_without_a_teacher_it_is_supervised_training_to_the_bit() -> None:
    """Sheet 19, check (c): the same weights after an update as by cross-entropy with smoothing, in a loop by hand."""
    ours, theirs = (student(answers=None, rows=None, ratio=0) for _ in range(2))
    x, index = torch.randn(3, 3, 2, 2), torch.tensor([2, 0, 1])
    drive(ours.step(Images(x, index), clock(0)), lambda o: bool(o.loss.backward()))
    z = theirs.online_classifier(theirs.online(x))
    nn.functional.cross_entropy(z, LABELS[index], label_smoothing=0.1).backward()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("step", "m"), [(0, 2 / 11), (98, 100 / 109), (10**6 - 1, 0.9999)])
def test_the_average_warms_up_and_follows_statistics_too(step: int, m: float) -> None:
    method, x = student(), torch.randn(6, 3, 2, 2)
    start = {k: v.clone() for k, v in method.encoder.state_dict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    taken(method, x, step=step)
    online = method.online.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    for name, now in method.encoder.state_dict().items():  # pyright: ignore[reportAttributeAccessIssue]
        wanted = m * start[name] + (1 - m) * online[name] if now.is_floating_point() else online[name]
        torch.testing.assert_close(now, wanted)
    assert not torch.equal(online["norm.running_mean"], start["norm.running_mean"])


def test_the_average_waits_while_nothing_moves() -> None:
    method = student()
    start = {k: v.clone() for k, v in method.encoder.state_dict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    taken(method, torch.randn(6, 3, 2, 2), moved=False)
    assert all(torch.equal(start[k], v) for k, v in method.encoder.state_dict().items())  # pyright: ignore


def test_dropout_is_the_students_alone() -> None:
    method, x = student(dropout=0.5), torch.randn(6, 3, 2, 2)
    method.train()
    first, second = (float(taken(method, x, moved=False).loss.detach()) for _ in range(2))
    assert first != second
    method.eval()
    assert torch.equal(method(x), method(x))
    assert torch.equal(method(x), method.classifier(method.encoder(x)))


def test_answers_are_no_part_of_the_state() -> None:
    names = student().state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"online", "online_classifier", "encoder", "classifier"}
    opened = NoisyStudent(Flat(), classes=3, ratio=2, dropout=0.5, smoothing=0.1)  # pyright: ignore
    opened.load_state_dict(student().state_dict())


def test_it_copies_counts() -> None:
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two(torch.randn(4, 2))
    follow_(one, two, 0.9)
    assert int(one.num_batches_tracked or 0) == 1


def test_a_device_gets_the_batchs_answers_alone() -> None:
    """All answers of a large source would not fit on it: what is not a buffer stays where it is."""
    asked: list[Tensor] = []

    def answers(rows: Tensor) -> Tensor:
        asked.append(rows)
        return ANSWERS[rows]

    method = student(answers=answers)
    assert not {"answers", "rows"} & dict(method.named_buffers()).keys()
    method.targets(INDEX)
    assert [len(rows) for rows in asked] == [len(INDEX)]
