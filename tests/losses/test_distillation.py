"""DINO's and iBOT's losses against naive float64 loops and their sheets' checks."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.distillation import masked_distillation, self_distillation, teacher_probabilities


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    mass = [math.exp(x - top) for x in logits]
    return [x / sum(mass) for x in mass]


def slow_dino(student: Tensor, teacher: Tensor, centre: Tensor, tau_s: float, tau_t: float) -> tuple[float, int]:
    """The loss from raw teacher logits and the number of its terms."""
    terms: list[float] = []
    for u in range(len(teacher)):
        for v in range(len(student)):
            if u == v:
                continue
            total = 0.0
            for row in range(student.shape[1]):
                p = softmax([(float(t) - float(c)) / tau_t for t, c in zip(teacher[u, row], centre, strict=True)])
                s = softmax([float(x) / tau_s for x in student[v, row]])
                total -= sum(a * math.log(b) for a, b in zip(p, s, strict=True))
            terms.append(total / student.shape[1])
    return sum(terms) / len(terms), len(terms)


def test_it_is_the_equation_with_2v_minus_2_terms() -> None:
    student, teacher, centre = noise(5, 3, 7).requires_grad_(), noise(2, 3, 7, seed=1), noise(7, seed=2)
    p = teacher_probabilities(teacher, centre, temperature=0.4)
    expected, terms = slow_dino(student.detach(), teacher, centre, 0.5, 0.4)
    loss = self_distillation(student, p, temperature=0.5)
    assert terms == 2 * 5 - 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    (grad,) = torch.autograd.grad(loss, student)
    for place in [(0, 0, 0), (1, 2, 6), (4, 1, 3)]:
        up, down = student.detach().clone(), student.detach().clone()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (slow_dino(up, teacher, centre, 0.5, 0.4)[0] - slow_dino(down, teacher, centre, 0.5, 0.4)[0]) / 2e-5
        assert float(grad[place]) == pytest.approx(slope, abs=1e-7)
    assert torch.autograd.gradcheck(lambda s: self_distillation(s, p, temperature=0.5), student)


def test_a_uniform_student_costs_log_k() -> None:
    p = teacher_probabilities(noise(2, 1, 65536).float(), torch.zeros(65536), temperature=0.04)
    assert float(self_distillation(torch.ones(3, 1, 65536), p)) == pytest.approx(math.log(65536), rel=1e-5)


def test_the_centre_absorbs_a_constant_vector() -> None:
    teacher, centre, shift = noise(2, 3, 7), noise(7, seed=1), noise(7, seed=2)
    before = teacher_probabilities(teacher, centre, temperature=0.04)
    torch.testing.assert_close(teacher_probabilities(teacher + shift, centre + shift, temperature=0.04), before)
    assert (teacher_probabilities(teacher + shift, centre, temperature=0.04) - before).abs().max() > 0.01


def test_a_student_that_equals_the_teacher_pays_its_entropy() -> None:
    logits = noise(1, 3, 7).expand(2, 3, 7)
    p = teacher_probabilities(logits, torch.zeros(7, dtype=torch.float64), temperature=0.3)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(self_distillation(logits, p, temperature=0.3), entropy)


def test_a_view_does_not_predict_itself() -> None:
    student = noise(3, 2, 5).requires_grad_()
    p = teacher_probabilities(noise(1, 2, 5, seed=1), torch.zeros(5, dtype=torch.float64), temperature=0.3)
    (grad,) = torch.autograd.grad(self_distillation(student, p), student)
    assert (grad[0] == 0).all()
    assert (grad[1:] != 0).any(dim=-1).all()


def test_types_and_refusals() -> None:
    teacher, centre = noise(2, 3, 7).requires_grad_(), torch.zeros(7, dtype=torch.float64)
    p = teacher_probabilities(teacher, centre, temperature=0.04)
    assert not p.requires_grad
    assert p.dtype == torch.float64
    assert teacher_probabilities(teacher.bfloat16(), centre.float(), temperature=0.04).dtype == torch.float32
    assert self_distillation(noise(2, 3, 7).half(), p).dtype == torch.float32
    with pytest.raises(ValueError, match="needs 2 views"):
        self_distillation(noise(1, 3, 7), p[:1])


def slow_ibot(student: Tensor, teacher: Tensor, masked: Tensor, tau: float) -> Tensor:
    """The loss of patches from all of them, ``c n k``, one patch at a time."""
    total = torch.zeros((), dtype=student.dtype)
    for c in range(len(masked)):
        places = masked[c].nonzero().flatten().tolist()
        for i in places:
            s = (student[c, i] / tau).exp()
            total = total - (teacher[c, i] * (s / s.sum()).log()).sum() / max(1, len(places))
    return total / len(masked)


MASKED = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)


def test_hidden_patches_cost_what_the_equation_says() -> None:
    student, teacher = noise(3, 5, 7).requires_grad_(), noise(3, 5, 7, seed=1).softmax(-1)
    mine = masked_distillation(student[MASKED], teacher[MASKED], MASKED, temperature=0.4)
    theirs = slow_ibot(student, teacher, MASKED, 0.4)
    torch.testing.assert_close(mine, theirs)
    (a,), (b,) = torch.autograd.grad(mine, student), torch.autograd.grad(theirs, student)
    torch.testing.assert_close(a, b)
    assert not a[~MASKED].any()
    hidden, p = noise(4, 7).requires_grad_(), teacher[MASKED]
    assert torch.autograd.gradcheck(lambda s: masked_distillation(s, p, MASKED, temperature=0.4), hidden)


def test_a_crop_without_hidden_patches_costs_nothing_and_counts() -> None:
    student, teacher = noise(4, 7), noise(4, 7, seed=1).softmax(-1)
    two, three = MASKED[[0, 2]], MASKED
    costs = [float(masked_distillation(student, teacher, masked)) for masked in (two, three)]
    assert costs[1] == pytest.approx(costs[0] * 2 / 3)
    none = torch.zeros(3, 5, dtype=torch.bool)
    empty = torch.zeros(0, 7, requires_grad=True)
    loss = masked_distillation(empty, torch.zeros(0, 7), none)
    loss.backward()
    assert float(loss.detach()) == 0
    assert empty.grad is not None


def test_each_crop_weighs_the_same_however_much_is_hidden() -> None:
    """Unlike BEiT's mean over all hidden patches."""
    student, teacher = noise(1, 7).expand(4, 7).clone().requires_grad_(), noise(1, 7, seed=1).softmax(-1).expand(4, 7)
    (grad,) = torch.autograd.grad(masked_distillation(student, teacher, MASKED), student)
    torch.testing.assert_close(3 * grad[0], grad[3])
    torch.testing.assert_close(grad[0], grad[1])


def test_a_student_that_knows_nothing_pays_log_k_for_hidden_patches() -> None:
    masked = torch.ones(2, 3, dtype=torch.bool)
    p = noise(6, 8192).float().softmax(-1)
    assert float(masked_distillation(torch.zeros(6, 8192), p, masked)) == pytest.approx(9.0109, rel=1e-4)
    half = masked_distillation(torch.zeros(6, 8192).bfloat16(), p, masked)
    assert half.dtype == torch.float32
