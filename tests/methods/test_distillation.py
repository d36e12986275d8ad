"""Distillation: a teacher that stays as it is and is not saved, and labels beside its answers."""

import copy

import pytest
import torch
from stand_ins import SmallEncoder, clock
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Images
from selfsight.losses.soft_targets import soft_cross_entropy
from selfsight.method import Objective, drive
from selfsight.methods.distillation import Distillation

LABELS = torch.tensor([2, -1, 1, -1, -1, 0])


class Teacher(nn.Module):
    """A network with batch norm, whose statistics a training mode would move."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallEncoder()
        self.output = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.encoder(x))


def student(*, label_weight: float = 0.0, temperature: float = 1.0, teacher: nn.Module | None = None) -> Distillation:
    torch.manual_seed(0)
    made = SmallEncoder()
    torch.manual_seed(1)
    return Distillation(
        made,
        teacher or Teacher(),
        classes=3,
        temperature=temperature,
        label_weight=label_weight,
        labels=LABELS if label_weight else None,
    )


def batch(*index: int) -> Images:
    generator = torch.Generator().manual_seed(1)
    return Images(torch.randn(len(index), 3, 6, 6, generator=generator), torch.tensor(index))


def objective(method: Distillation, given: Images) -> Objective:
    seen: list[Objective] = []

    def update(found: Objective) -> bool:
        seen.append(found)
        method.zero_grad()
        found.loss.backward()
        return True

    drive(method.step(given, clock()), update)
    return seen[0]


def test_the_loss_is_that_of_the_teachers_answers_in_evaluation_mode() -> None:
    teacher = Teacher()
    before = copy.deepcopy(teacher.state_dict())
    method = student(temperature=2.0, teacher=teacher).train()
    given = batch(0, 1, 2, 3)
    found = objective(method, given)
    answers = copy.deepcopy(teacher).eval()(given.x)
    torch.testing.assert_close(found.loss, soft_cross_entropy(method(given.x), answers, temperature=2.0))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert found.log["agreement"] == (method(given.x).argmax(1) == answers.argmax(1)).float().mean()


def test_the_teacher_is_neither_trained_nor_saved() -> None:
    method = student()
    names = {name for name, _ in method.trainables()["main"]}
    assert names == {"encoder.conv.weight", "encoder.conv.bias", "encoder.norm.weight", "encoder.norm.bias"} | {
        "classifier.weight",
        "classifier.bias",
    }
    assert {key.split(".")[0] for key in method.state_dict()} == {"encoder", "classifier"}
    opened = Distillation(SmallEncoder(), None, classes=3)
    opened.load_state_dict(method.state_dict())
    assert opened(torch.zeros(2, 3, 6, 6)).shape == (2, 3)
    with pytest.raises(ValueError, match="without its teacher"):
        objective(opened, batch(0, 1))


def test_labels_weigh_beside_the_answers() -> None:
    given = batch(0, 1, 2, 3)
    soft = objective(student(), given).loss
    method = student(label_weight=0.25)
    mixed = objective(method, given).loss
    labelled = cross_entropy(method(given.x)[[0, 2]], torch.tensor([2, 1]))
    torch.testing.assert_close(mixed, 0.75 * soft + 0.25 * labelled)


def test_a_batch_without_labels_has_the_answers_alone() -> None:
    given = batch(1, 3, 4)
    torch.testing.assert_close(
        objective(student(label_weight=0.25), given).loss, 0.75 * objective(student(), given).loss
    )


def test_the_mean_over_processes_is_the_joined_batchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with two labels and one: each divides by the mean of their numbers. Without batch norm's part."""
    teacher = Teacher()

    def parted(*index: int, known: float) -> tuple[Objective, Tensor]:
        monkeypatch.setattr("selfsight.methods.distillation.mean", lambda count: torch.full_like(count, known))
        method = student(label_weight=0.25, teacher=teacher).eval()
        found = objective(method, Images(images[list(index)], torch.tensor(index)))
        return found, torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])

    images = batch(0, 1, 2, 3, 4, 5).x
    whole, gradient = parted(0, 1, 2, 3, 4, 5, known=3.0)
    (one, first), (two, second) = parted(0, 1, 2, known=1.5), parted(3, 4, 5, known=1.5)
    torch.testing.assert_close((one.loss + two.loss) / 2, whole.loss)
    torch.testing.assert_close((first + second) / 2, gradient)


def test_it_comes_to_agree_with_its_teacher() -> None:
    teacher = Teacher()
    with torch.no_grad():
        teacher.output.weight.mul_(20)
    method, losses = student(teacher=teacher), []
    optimiser = torch.optim.SGD(method.parameters(), lr=0.5)
    given = batch(0, 1, 2, 3, 4, 5)

    def update(found: Objective) -> bool:
        losses.append(found.loss.item())
        optimiser.zero_grad()
        found.loss.backward()
        optimiser.step()
        return True

    for _ in range(60):
        drive(method.step(given, clock()), update)
    p = method.teach(given.x).softmax(1)
    entropy = -(p * p.log()).sum(1).mean().item()
    assert losses[-1] - entropy < 0.2 * (losses[0] - entropy)
