"""Instance classification: a cross-entropy over rows, in blocks, and PIC's geometry."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from selfsight.losses import blockwise
from selfsight.losses.instance import instance_softmax


@pytest.fixture(params=[3, 512])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(blockwise._SIDE, "cpu", request.param)


def test_is_a_cross_entropy(blocks: None) -> None:
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([3, 0, 10, 3, 7])  # one class twice
    mine = instance_softmax(z, v, target, temperature=0.3)
    losses = []
    for x, y in zip(z, target, strict=True):
        exps = [((x * row).sum() / 0.3).exp() for row in v]
        losses.append(-(exps[int(y)] / sum(exps)).log())
    theirs = sum(losses) / 5
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mine, cross_entropy(z @ v.T / 0.3, target), rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(mine, [z, v]), torch.autograd.grad(theirs, [z, v]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradcheck(blocks: None) -> None:
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([5, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b: instance_softmax(a, b, target, temperature=0.5), (z, v))


def test_before_training_it_is_the_log_of_the_classes_and_gradients_are_orthogonal_to_the_weights() -> None:
    """Sheet 9, check c: the loss begins near log N, and no weight's gradient has a part along it."""
    torch.manual_seed(0)
    n = 20_000
    w = (0.01 * torch.randn(n, 128, dtype=torch.float64)).requires_grad_()
    z = normalize(torch.randn(8, 128, dtype=torch.float64), dim=1)
    loss = instance_softmax(z, normalize(w, dim=1), torch.arange(8), temperature=0.2)
    assert loss.item() == pytest.approx(math.log(n), abs=0.5)
    (g,) = torch.autograd.grad(loss, w)
    assert (g[:8].norm(dim=1) > 1).all()
    assert ((g * w).sum(dim=1).abs() < 1e-9 * (1 + g.norm(dim=1) * w.norm(dim=1))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z, v = torch.randn(4, 8, dtype=dtype, requires_grad=True), torch.randn(9, 8, dtype=dtype)
    target = torch.tensor([0, 8, 3, 3])
    value = instance_softmax(z, v, target, temperature=0.01)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, instance_softmax(z.float(), v.float(), target, temperature=0.01))
    assert torch.autograd.grad(value, z)[0].isfinite().all()
