"""Distillation's loss against a naive float64 oracle, and sheet 9's relations."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from selfsight.losses.soft_targets import known_cross_entropy, soft_cross_entropy


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(logits: list[float], tau: float) -> list[float]:
    top = max(logits)
    mass = sum(math.exp((x - top) / tau) for x in logits)
    return [(x - top) / tau - math.log(mass) for x in logits]


def slow(student: Tensor, teacher: Tensor, tau: float) -> float:
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= sum(math.exp(a) * b for a, b in zip(log_softmax(t, tau), log_softmax(s, tau), strict=True))
    return tau**2 * total / len(student)


@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0])
def test_it_is_the_equation_in_value_and_gradient(tau: float) -> None:
    student, teacher = noise(5, 7).requires_grad_(), noise(5, 7, seed=1)
    loss = soft_cross_entropy(student, teacher, temperature=tau)
    assert loss.item() == pytest.approx(slow(student.detach(), teacher, tau), rel=1e-9)
    (grad,) = torch.autograd.grad(loss, student)
    for place in [(0, 0), (4, 6), (2, 3)]:
        up, down = student.detach().clone(), student.detach().clone()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (slow(up, teacher, tau) - slow(down, teacher, tau)) / 2e-5
        assert grad[place].item() == pytest.approx(slope, abs=1e-6)
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, teacher, temperature=tau), student)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_a_student_that_is_its_teacher_has_no_gradient_and_the_teachers_entropy(tau: float) -> None:
    teacher = noise(4, 6)
    student = (teacher + 2.5).requires_grad_()  # probabilities do not see a constant
    loss = soft_cross_entropy(student, teacher, temperature=tau)
    p = (teacher / tau).softmax(dim=1)
    torch.testing.assert_close(loss, tau**2 * -(p * p.log()).sum(1).mean())
    (grad,) = torch.autograd.grad(loss, student)
    assert grad.abs().max() < 1e-15


def test_a_large_temperature_matches_centred_logits() -> None:
    student, teacher = noise(1, 5).requires_grad_(), noise(1, 5, seed=1)
    (grad,) = torch.autograd.grad(soft_cross_entropy(student, teacher, temperature=1e4), student)
    s, t = student.detach(), teacher
    expected = (s - s.mean() - t + t.mean()) / 5
    torch.testing.assert_close(grad, expected, atol=1e-4, rtol=0)
    (near,) = torch.autograd.grad(soft_cross_entropy(student, teacher, temperature=1.0), student)
    assert (near - expected).abs().max() > 0.01, "at a temperature of 1 it is another thing"


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = noise(2, 3).requires_grad_(), noise(2, 3, seed=1).requires_grad_()
    soft_cross_entropy(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_half_precision_is_computed_in_full() -> None:
    student, teacher = (100 * noise(3, 4, seed=s).half() for s in (0, 1))
    loss = soft_cross_entropy(student, teacher, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss.item() == pytest.approx(slow(student.double(), teacher.double(), 0.1), rel=1e-4)


def test_known_labels_alone_count() -> None:
    logits, labels = noise(5, 3).requires_grad_(), torch.tensor([2, -1, 0, -1, 1])
    asked = labels >= 0
    loss = known_cross_entropy(logits, labels, asked.sum().double())
    torch.testing.assert_close(loss, cross_entropy(logits[asked], labels[asked]))
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[~asked] == 0).all()
    assert (grad[asked].abs().sum(1) > 0).all()
    nobody = known_cross_entropy(logits, torch.full((5,), -1), torch.zeros(()))
    assert nobody.item() == 0


def test_two_shares_are_the_joined_batch() -> None:
    """With the mean count as ``known``, the mean over two processes is the loss of all rows."""
    logits, labels = noise(6, 3), torch.tensor([0, 1, -1, 2, -1, -1])
    shares = [known_cross_entropy(logits[a:b], labels[a:b], torch.tensor(1.5)) for a, b in ((0, 3), (3, 6))]
    whole = known_cross_entropy(logits, labels, torch.tensor(3.0))
    torch.testing.assert_close(sum(shares) / 2, whole)
