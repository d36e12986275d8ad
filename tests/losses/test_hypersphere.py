"""Alignment and uniformity: closed forms on the sphere, slow oracles, and the metrics they share code with."""

import math

import pytest
import torch
from scipy.special import hyp0f1
from torch import Tensor

from selfsight.evaluation import quality
from selfsight.losses import blockwise
from selfsight.losses.hypersphere import align_uniform, align_uniform_with_queue, alignment, uniformity


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[3, 512])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blockwise._SIDE, "cpu", request.param)


def normal(n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, dtype=dtype, requires_grad=True)


def on_the_sphere(z: Tensor) -> list[Tensor]:
    return [x / x.square().sum().sqrt() for x in z]


def slow_alignment(z1: Tensor, z2: Tensor, alpha: float) -> Tensor:
    pairs = zip(on_the_sphere(z1), on_the_sphere(z2), strict=True)
    return sum((x - y).square().sum().sqrt() ** alpha for x, y in pairs) / len(z1)


def kernel(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (-t * (a - b).square().sum()).exp()


def slow_uniformity(z: Tensor, t: float) -> Tensor:
    x = on_the_sphere(z)
    pairs = [kernel(x[i], x[j], t) for i in range(len(x)) for j in range(i + 1, len(x))]
    return (sum(pairs) / len(pairs)).log()


def same(mine: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_equals_the_equation(alpha: float) -> None:
    z1, z2 = normal(6, 4), normal(6, 4)
    same(alignment(z1, z2, alpha=alpha), slow_alignment(z1, z2, alpha), z1, z2)


@pytest.mark.parametrize("t", [0.5, 2.0, 3.0])
def test_uniformity_equals_the_equation(blocks: None, t: float) -> None:
    z = normal(7, 4)
    same(uniformity(z, t=t), slow_uniformity(z, t), z)


def test_the_loss_equals_the_equation(blocks: None) -> None:
    z1, z2 = normal(6, 4), normal(6, 4)
    mine = align_uniform(z1, z2, align=0.7, uniform=1.3, alpha=2.0, t=1.5)
    theirs = 0.7 * slow_alignment(z1, z2, 2) + 1.3 * (slow_uniformity(z1, 1.5) + slow_uniformity(z2, 1.5)) / 2
    same(mine, theirs, z1, z2)


def test_the_loss_with_a_queue_equals_the_equation(blocks: None) -> None:
    q, k, queue = normal(5, 4), normal(5, 4), normal(9, 4)
    x, n = on_the_sphere(q), on_the_sphere(queue)
    pairs = [kernel(a, b, 3) for a in x for b in n]
    pairs += [kernel(x[i], x[j], 3) for i in range(5) for j in range(i + 1, 5)]
    assert len(pairs) == 5 * 9 + 10
    theirs = 3 * slow_alignment(q, k, 2) + (sum(pairs) / len(pairs)).log()
    same(align_uniform_with_queue(q, k, negatives=queue), theirs, q, k, queue)


def test_parts_with_a_queue_make_the_whole() -> None:
    q, k, queue = normal(6, 4), normal(6, 4), normal(9, 4)
    whole = align_uniform_with_queue(q, k, negatives=queue)
    parts = [align_uniform_with_queue(q[o : o + 3], k[o : o + 3], negatives=queue, all_q=q) for o in (0, 3)]
    same(sum(parts) / 2, whole, q, k)
    alone = align_uniform_with_queue(q[:1], k[:1], negatives=queue)  # a single query has no pairs of its own
    x, n = on_the_sphere(q[:1])[0], on_the_sphere(queue)
    expected = 3 * slow_alignment(q[:1], k[:1], 2) + (sum(kernel(x, b, 3) for b in n) / 9).log()
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize(("d", "t", "published"), [(2, 2, -1.5750), (128, 2, -3.9375), (128, 3, -5.8595)])
def test_uniformity_of_the_even_sphere(d: int, t: float, published: float) -> None:
    """Sheet 4, check 2: uniform points have log 0F1(; d/2; t²) - 2t."""
    closed = math.log(hyp0f1(d / 2, t * t)) - 2 * t
    assert closed == pytest.approx(published, abs=1e-4)
    assert uniformity(torch.randn(3000, d), t=t).item() == pytest.approx(closed, abs=0.01)


def test_equal_rows_are_the_maximum() -> None:
    z = torch.ones(40, 6)
    assert uniformity(z).item() == pytest.approx(0, abs=2e-6)
    assert align_uniform(z, z).item() == pytest.approx(0, abs=2e-6)
    assert uniformity(torch.randn(40, 6)).item() < -1


def test_gradient_is_finite_where_points_coincide() -> None:
    for alpha in (1.0, 1.5, 2.0):
        x, y = torch.ones(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
        grads = torch.autograd.grad(align_uniform(x, y, alpha=alpha), [x, y])
        assert all(g.abs().max() < 1e-5 for g in grads)


def test_rotation_changes_nothing() -> None:
    z1, z2 = normal(8, 5), normal(8, 5)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    torch.testing.assert_close(align_uniform(z1 @ turn, z2 @ turn), align_uniform(z1, z2))
    torch.testing.assert_close(uniformity(z1 @ turn), uniformity(z1))


def test_the_metrics_are_the_losses() -> None:
    x, y = torch.randn(30, 6), torch.randn(30, 6)
    assert quality.alignment(x, y, alpha=1.5) == alignment(x, y, alpha=1.5).item()
    assert quality.uniformity(x, t=3) == uniformity(x, t=3).item()


def test_a_queue_s_loss_in_half_types_is_computed_in_float32() -> None:
    q, k, queue = (torch.randn(6, 8, dtype=torch.bfloat16) for _ in range(3))
    value = align_uniform_with_queue(q, k, negatives=queue)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, align_uniform_with_queue(q.float(), k.float(), negatives=queue.float()))


def test_one_row_has_no_uniformity() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        uniformity(torch.ones(1, 3))
