"""The joint loss of labelled and pseudo-labelled images against its equation, and its identities."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from selfsight.losses.self_training import joint_cross_entropy, smoothed, tempered


def logits(n: int, k: int = 5) -> Tensor:
    return torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def naive(z: Tensor, labels: list[int], answers: Tensor, ratio: int) -> Tensor:
    """Sum over all images of minus the sum over classes, over the number of labelled ones, term by term."""
    total, k = z.new_zeros(()), z.shape[1]
    for row, label in enumerate(labels):
        log_p = z[row] - z[row].exp().sum().log()
        for j in range(k):
            total = total - ((0.9 if j == label else 0.0) + 0.1 / k) * log_p[j]
    for row, q in enumerate(answers, start=len(labels)):
        log_p = z[row] - z[row].exp().sum().log()
        for j in range(k):
            total = total - q[j] * log_p[j]
    assert len(answers) == ratio * len(labels)
    return total / len(labels)


@pytest.mark.parametrize("ratio", [1, 3])
def test_it_is_the_labelled_mean_and_ratio_times_the_other(ratio: int) -> None:
    labels, z = [2, 0], logits(2 * (1 + ratio))
    answers = torch.rand(2 * ratio, 5, dtype=torch.float64).softmax(dim=1)
    targets = torch.cat([smoothed(torch.tensor(labels), 5, smoothing=0.1).double(), answers])
    loss = joint_cross_entropy(z, targets, ratio=ratio)
    (gradient,) = torch.autograd.grad(loss, z)
    expected = naive(z, labels, answers, ratio)
    (wanted,) = torch.autograd.grad(expected, z)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-7)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(lambda z: joint_cross_entropy(z, targets, ratio=ratio), (z,))


def test_without_unlabelled_images_it_is_supervised_training() -> None:
    z, labels = logits(4), torch.tensor([1, 4, 0, 0])
    plain = joint_cross_entropy(z, smoothed(labels, 5, smoothing=0.0), ratio=0)
    assert float(plain.detach()) == pytest.approx(float(cross_entropy(z.detach(), labels)), rel=1e-12)
    soft = joint_cross_entropy(z, smoothed(labels, 5, smoothing=0.1).double(), ratio=0)
    assert float(soft.detach()) == pytest.approx(
        float(cross_entropy(z.detach(), labels, label_smoothing=0.1)), rel=1e-6
    )


def test_a_student_that_is_its_teacher_pays_the_entropy_and_does_not_move() -> None:
    """Sheet 19, check (a): soft answers without smoothing; any other student pays more."""
    z = logits(6)
    told = z.detach().softmax(dim=1)
    loss = joint_cross_entropy(z, told, ratio=0)
    (gradient,) = torch.autograd.grad(loss, z)
    entropy = -(told * told.log()).sum(dim=1).mean()
    assert float(loss.detach()) == pytest.approx(float(entropy), rel=1e-12)
    assert float(gradient.abs().max()) < 1e-12
    for k in range(5):
        assert float(joint_cross_entropy(logits(6).detach() + torch.eye(5)[k], told, ratio=0)) > float(entropy)


def test_the_temperature_of_stored_answers_is_that_of_logits() -> None:
    """Sheet 19, check (c): near zero soft answers are hard ones without smoothing."""
    z = logits(6).detach()
    for temperature in (0.5, 1.0, 3.0):
        torch.testing.assert_close(tempered(z.softmax(dim=1), temperature), (z / temperature).softmax(dim=1))
    hard = smoothed(z.argmax(dim=1), 5, smoothing=0.0).double()
    torch.testing.assert_close(tempered(z.softmax(dim=1), 1e-3), hard)
    assert tempered(torch.tensor([[1.0, 0.0]]), 2.0).isfinite().all()


def test_smoothing_keeps_a_distribution() -> None:
    q = smoothed(torch.tensor([0, 3]), 4, smoothing=0.1)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(q[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_half_types_are_computed_in_full() -> None:
    z = logits(4).detach().bfloat16()
    found = joint_cross_entropy(z, torch.full((4, 5), 0.2), ratio=1)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(joint_cross_entropy(z.float(), torch.full((4, 5), 0.2), ratio=1)))
