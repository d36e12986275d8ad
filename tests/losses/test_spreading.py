"""InvaSpread's loss: the equation one pair at a time, sheet 18's closed forms, and the half of the gradient."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses import spreading
from selfsight.losses.spreading import invariance_and_spreading


@pytest.fixture(params=[7, 1 << 20])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(spreading, "_ENTRIES", request.param)


def two_views(b: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(b, d, dtype=dtype, requires_grad=True), torch.randn(b, d, dtype=dtype, requires_grad=True)


def slow(z1: Tensor, z2: Tensor, tau: float, m: float, *, detach: bool) -> Tensor:
    """The equation of the sheet, one pair at a time."""
    x = [v / v.norm() for v in [*z1, *z2]]
    n, b = len(x), len(z1)
    keys = [v.detach() for v in x] if detach else x
    total = 0.0
    for i in range(n):
        s = {k: ((x[i] * keys[k]).sum() / tau).exp() for k in range(n) if k != i}
        mate = (i + b) % n
        negatives = [s[k] for k in s if k != mate]
        d = s[mate] + m * sum(negatives)
        total = total + (s[mate] / d).log() + m * sum((1 - e / d).log() for e in negatives)
    return -total / n


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("m", [1.0, 2.5])
def test_equals_the_equation(blocks: None, detach: bool, m: float) -> None:
    z1, z2 = two_views(5, 4)
    mine = invariance_and_spreading(z1, z2, temperature=0.4, weight=m, detach_keys=detach)
    theirs = slow(z1, z2, 0.4, m, detach=detach)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, [z1, z2]), torch.autograd.grad(theirs, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_gradcheck(blocks: None) -> None:
    z1, z2 = two_views(3, 4)
    assert torch.autograd.gradcheck(
        lambda a, b: invariance_and_spreading(a, b, temperature=0.5, weight=1.5, detach_keys=False), (z1, z2)
    )


@pytest.mark.parametrize("b", [2, 16, 128])
def test_all_alike(b: int) -> None:
    """Sheet 18, check a: 6.539 for 256 embeddings."""
    z, n = torch.ones(b, 8, dtype=torch.float64), 2 * b
    expected = math.log(n - 1) - (n - 2) * math.log(1 - 1 / (n - 1))
    assert invariance_and_spreading(z, z).item() == pytest.approx(expected, rel=1e-9)


def test_equal_views_of_orthogonal_images() -> None:
    """Sheet 18, check b."""
    z = torch.eye(128, dtype=torch.float64)
    assert invariance_and_spreading(z, z).item() == pytest.approx(0.02287, abs=5e-6)


def test_order_of_views_and_images_does_not_matter(blocks: None) -> None:
    """Sheet 18, check c."""
    z1, z2 = two_views(6, 5)
    value, order = invariance_and_spreading(z1, z2), torch.randperm(6)
    torch.testing.assert_close(invariance_and_spreading(z2, z1), value)
    torch.testing.assert_close(invariance_and_spreading(z1[order], z2[order]), value)
    assert abs(invariance_and_spreading(z1[order], z2) - value) > 1e-3


def test_the_detached_gradient_is_the_anchors_part_of_the_whole() -> None:
    """Sheet 18, check c: anchors' part and keys' part add up to the gradient of the formula."""
    torch.manual_seed(0)
    z1, z2 = two_views(5, 4)
    other1, other2 = z1.detach().clone().requires_grad_(), z2.detach().clone().requires_grad_()
    apart = invariance_and_spreading(z1, z2, all1=other1, all2=other2, detach_keys=False)
    anchors, keys = torch.autograd.grad(apart, [z1, other1])
    (half,) = torch.autograd.grad(invariance_and_spreading(z1, z2), z1)
    (whole,) = torch.autograd.grad(invariance_and_spreading(z1, z2, detach_keys=False), z1)
    torch.testing.assert_close(half, anchors)
    torch.testing.assert_close(whole, anchors + keys)
    assert keys.norm() > 1e-3


@pytest.mark.parametrize("detach", [True, False])
def test_parts_are_the_whole(blocks: None, detach: bool) -> None:
    """Two processes played one after the other: values and gradients average to the joined batch's."""
    z1, z2 = two_views(6, 4)
    whole = invariance_and_spreading(z1, z2, detach_keys=detach)
    parts = [
        invariance_and_spreading(z1[r], z2[r], all1=z1, all2=z2, offset=r.start, detach_keys=detach)
        for r in (slice(0, 3), slice(3, 6))
    ]
    mean = sum(parts) / 2
    torch.testing.assert_close(mean, whole)
    for a, b in zip(torch.autograd.grad(mean, [z1, z2]), torch.autograd.grad(whole, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_negative_that_has_all_the_mass_is_exact(dtype: torch.dtype) -> None:
    """Here 1 - P is 2 e^-25: subtracted in float32 it would be nothing, and its logarithm infinite."""
    z1 = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    z2 = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]], dtype=dtype, requires_grad=True)
    value = invariance_and_spreading(z1, z2, temperature=0.08)
    assert value.dtype == torch.float32
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [z1, z2]))
    exact = slow(z1.detach().double(), z2.detach().double(), 0.08, 1.0, detach=True)
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert value.item() > 49  # log P of the positive is -25, and log(1 - P) of the twin log 2 more


def test_calls_that_cannot_be_meant() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="only one of all1 and all2"):
        invariance_and_spreading(z, z, all1=z)
    with pytest.raises(ValueError, match="4 rows at 2 among 4 images"):
        invariance_and_spreading(z, z, offset=2)
    with pytest.raises(ValueError, match="needs 2 images"):
        invariance_and_spreading(z[:1], z[:1])
    with pytest.raises(ValueError, match=r"weight of the negatives is 0.5"):
        invariance_and_spreading(z, z, weight=0.5)
