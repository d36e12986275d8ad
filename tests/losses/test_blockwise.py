"""The blockwise log-sum-exp against the whole matrix, and its memory against the matrix's size."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfsight.losses import blockwise
from selfsight.losses.blockwise import log_sum_exp


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[3, 4, 512])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks that divide nothing evenly, blocks that do, and one block for all."""
    monkeypatch.setitem(blockwise._SIDE, "cpu", request.param)
    return request.param


def slow(a: Tensor, c: Tensor, skip: Tensor | None) -> Tensor:
    rows = []
    for i in range(len(a)):
        left_out = set() if skip is None else set(skip[i].tolist())
        rows.append(torch.stack([(a[i] * c[j]).sum().exp() for j in range(len(c)) if j not in left_out]).sum().log())
    return torch.stack(rows)


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_value_and_gradient_equal_the_sum_over_candidates(side: int, skipped: int) -> None:
    a, c = torch.randn(8, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    skip = torch.stack([torch.randperm(11)[:skipped] for _ in range(8)]) if skipped else None
    weights = torch.randn(8, dtype=torch.float64)
    results = []
    for f in (lambda a, c: log_sum_exp(a, c, skip=skip), lambda a, c: slow(a, c, skip)):
        a_, c_ = a.clone().requires_grad_(), c.clone().requires_grad_()
        value = f(a_, c_)
        results.append([value, *torch.autograd.grad((value * weights).sum(), [a_, c_])])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_symmetric_form_equals_the_general_one(side: int) -> None:
    z, weights = torch.randn(10, 5, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    skip = torch.stack([torch.arange(10), torch.arange(10).roll(5)], dim=1)  # symmetric: itself and its partner
    one, two = z.clone().requires_grad_(), z.clone().requires_grad_()
    same = log_sum_exp(one, one, skip=skip)
    general = log_sum_exp(two, two.clone(), skip=skip)
    torch.testing.assert_close(same, general, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((value * weights).sum(), z)[0] for value, z in ((same, one), (general, two))]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


def test_gradcheck(side: int) -> None:
    a = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    skip = torch.tensor([[0], [6], [3], [4], [2]])
    assert torch.autograd.gradcheck(lambda a, c: log_sum_exp(a, c, skip=skip), (a, c))
    assert torch.autograd.gradcheck(lambda a: log_sum_exp(a, a), (a,))


def test_anchor_that_skips_all_gets_minus_infinity_and_no_gradient() -> None:
    a = torch.randn(2, 3, requires_grad=True)
    c = torch.randn(2, 3, requires_grad=True)
    value = log_sum_exp(a, c, skip=torch.tensor([[0, 1], [1, 1]]))
    assert value[0].item() == -math.inf
    torch.testing.assert_close(value[1], (a[1] * c[0]).sum())
    grad_a, grad_c = torch.autograd.grad(torch.nn.functional.softplus(value).sum(), [a, c])
    assert grad_a.isfinite().all()
    assert grad_c.isfinite().all()
    assert not grad_a[0].any()


def test_large_scores_do_not_overflow() -> None:
    a = torch.tensor([[300.0, 0.0]], requires_grad=True)
    value = log_sum_exp(a, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert value.item() == 300.0
    assert torch.autograd.grad(value.sum(), a)[0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("same", [True, False])
def test_what_is_saved_for_backward_grows_linearly(same: bool) -> None:
    def saved(n: int) -> int:
        elements = 0

        def count(x: Tensor) -> Tensor:
            nonlocal elements
            elements += x.numel()
            return x

        z = torch.randn(n, 4, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            log_sum_exp(z, z if same else z * 1.0)
        return elements

    assert saved(2048) <= 2 * saved(1024)


@pytest.mark.parametrize("same", [True, False])
def test_no_tensor_on_the_way_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """Every result of every operation, forward and backward: 1,200 embeddings never make 1,440,000 scores."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                Largest.numel = max(Largest.numel, out.numel())
            return out

    monkeypatch.setitem(blockwise._SIDE, "cpu", 128)
    z = torch.randn(1200, 4, requires_grad=True)
    with Largest():
        log_sum_exp(z, z if same else z * 1.0).sum().backward()
    assert Largest.numel == 128 * 128


def test_autocast_stays_outside() -> None:
    a, c = torch.randn(6, 64), torch.randn(9, 64)
    exact = log_sum_exp(a, c)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_sum_exp(a, c), exact)
