"""InfoNCE across views: a slow oracle from MoCo v3's equation, closed forms, and the joined batch from its parts."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from selfsight.losses import blockwise
from selfsight.losses.contrastive import nt_xent
from selfsight.losses.cross_view import cross_view_info_nce


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pair(b: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(b, d, dtype=dtype, requires_grad=True), torch.randn(b, d, dtype=dtype, requires_grad=True)


def slow(a: Tensor, c: Tensor, tau: float) -> Tensor:
    losses = []
    for i in range(len(a)):
        cosines = [(a[i] * c[j]).sum() / a[i].norm() / c[j].norm() for j in range(len(c))]
        losses.append(-cosines[i] / tau + sum((s / tau).exp() for s in cosines).log())
    return sum(losses) / len(a)


@pytest.mark.parametrize("side", [3, 512])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_value_and_gradient_equal_the_equation(side: int, tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blockwise._SIDE, "cpu", side)
    a, c = pair(5, 7)
    mine, theirs = cross_view_info_nce(a, c, temperature=tau), slow(a, c, tau)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for x, y in zip(torch.autograd.grad(mine, [a, c]), torch.autograd.grad(theirs, [a, c]), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda a, c: cross_view_info_nce(a, c, temperature=0.3), pair(4, 3))


@pytest.mark.parametrize("b", [2, 64, 700])
def test_equal_features_cost_the_log_of_the_candidates(b: int) -> None:
    z = torch.ones(b, 8)
    assert cross_view_info_nce(z, z, temperature=0.1).item() == pytest.approx(math.log(b), rel=1e-6)


def test_it_is_a_cross_entropy_and_lacks_simclrs_negatives_of_the_own_view() -> None:
    a, c = pair(8, 5)
    logits = normalize(a, dim=1) @ normalize(c, dim=1).T / 0.2
    expected = cross_entropy(logits, torch.arange(8))
    torch.testing.assert_close(cross_view_info_nce(a, c, temperature=0.2), expected)
    both = (expected + cross_entropy(logits.T, torch.arange(8))) / 2
    assert nt_xent(a, c, temperature=0.2) > both + 0.1


def test_the_mean_over_processes_is_the_joined_batch_in_value_and_gradient() -> None:
    a, c = pair(12, 5)
    whole = cross_view_info_nce(a, c, temperature=0.2)
    parts = [
        cross_view_info_nce(a[o : o + 4], c[o : o + 4], temperature=0.2, all_candidates=c, offset=o)
        for o in range(0, 12, 4)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    for x, y in zip(torch.autograd.grad(mean, [a, c]), torch.autograd.grad(whole, [a, c]), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    a, c = pair(16, 8, dtype)
    loss = cross_view_info_nce(a, c, temperature=0.01)  # logits up to 100, whose exponential overflows
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_view_info_nce(a.float(), c.float(), temperature=0.01))
    assert all(g.isfinite().all() and g.dtype == dtype for g in torch.autograd.grad(loss, [a, c]))


def test_an_offset_that_cannot_be_meant() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="offset 2 for 4 rows among 4"):
        cross_view_info_nce(z, z, temperature=0.1, offset=2)
