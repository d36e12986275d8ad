"""What holds for every loss of two views: parts make the whole, blocks, memory, half types, symmetries, refusals."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfsight.losses import blockwise
from selfsight.losses.contrastive import PairLoss, nt_xent
from selfsight.losses.debiased import debiased, effective_negatives, hard_negatives, share_at_the_floor
from selfsight.losses.decoupled import decoupled, flat_nce
from selfsight.losses.hypersphere import align_uniform

LOSSES: dict[str, PairLoss] = {
    "nt_xent": partial(nt_xent, temperature=0.3),
    "debiased": partial(debiased, temperature=0.5, tau_plus=0.1),
    "hard_negatives": partial(hard_negatives, temperature=0.5, tau_plus=0.1, beta=1.5),
    "decoupled": partial(decoupled, temperature=0.3),
    "decoupled, weighted": partial(decoupled, temperature=0.3, sigma=0.5),
    "flat_nce": partial(flat_nce, temperature=0.3),
    "align_uniform": partial(align_uniform, align=2.0, uniform=0.7, t=1.5),
}
MEASURES: dict[str, PairLoss] = {
    "share_at_the_floor": partial(share_at_the_floor, temperature=0.5, tau_plus=0.3, beta=0.5),
    "effective_negatives": partial(effective_negatives, temperature=0.5, beta=1.5),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
measures = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def views(b: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Views that share an image and differ by noise."""
    image = torch.randn(b, d)
    z1, z2 = ((image + 0.5 * torch.randn(b, d)).to(dtype) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def gradients(value: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, inputs)])


def in_parts(loss: Callable[..., Tensor], z1: Tensor, z2: Tensor, processes: int) -> Tensor:
    """The mean over processes, played one after the other."""
    b = len(z1) // processes
    parts = [loss(z1[o : o + b], z2[o : o + b], all1=z1, all2=z2, offset=o) for o in range(0, len(z1), b)]
    return torch.stack(parts).mean()


@every
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("side", [3, 512])
def test_parts_make_the_whole(loss: PairLoss, processes: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z1, z2 = views(6, 5)
    whole = loss(z1, z2)
    expected = gradients(whole, z1, z2)
    monkeypatch.setitem(blockwise._SIDE, "cpu", side)
    parts = in_parts(loss, z1, z2, processes)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(parts, z1, z2), expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 1e-3


@measures
def test_parts_of_a_measure_make_the_whole(measure: PairLoss) -> None:
    z1, z2 = views(6, 5)
    torch.testing.assert_close(in_parts(measure, z1, z2, 3), measure(z1, z2), rtol=1e-12, atol=1e-12)


@every
def test_gradcheck(loss: PairLoss, request: pytest.FixtureRequest) -> None:
    z1, z2 = views(4, 3)
    if request.node.callspec.id == "flat_nce":  # its value is constant, its gradient is not: see test_decoupled.py
        assert loss(z1, z2).item() == 1
    elif request.node.callspec.id == "decoupled, weighted":  # its weights count as constants
        assert gradients(loss(z1, z2), z1, z2).isfinite().all()
    else:
        assert torch.autograd.gradcheck(loss, (z1, z2))


@every
def test_views_and_images_have_no_order(loss: PairLoss) -> None:
    z1, z2 = views(9, 4)
    order = torch.randperm(9)
    value = loss(z1, z2)
    torch.testing.assert_close(loss(z2, z1), value)
    torch.testing.assert_close(loss(z1[order], z2[order]), value)
    torch.testing.assert_close(loss(3 * z1, 0.1 * z2), value)  # what counts is the direction
    if value != 1:
        assert abs(loss(z1[order], z2) - value) > 1e-3


@every
@pytest.mark.parametrize("spread", [False, True])
def test_no_tensor_on_the_way_is_larger_than_a_block(
    loss: PairLoss, spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,200 embeddings never make 1,440,000 scores, in one process or as one of two."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                Largest.numel = max(Largest.numel, out.numel())
            return out

    monkeypatch.setitem(blockwise._SIDE, "cpu", 128)
    z1, z2 = views(600, 4, torch.float32)
    with Largest():
        value = loss(z1[:300], z2[:300], all1=z1 * 1, all2=z2 * 1, offset=0) if spread else loss(z1, z2)
        value.backward()
    assert 0 < Largest.numel <= 128 * 128


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(loss: PairLoss, dtype: torch.dtype) -> None:
    z1, z2 = views(16, 8, dtype)
    value = loss(z1, z2)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(z1.float(), z2.float()))
    assert all(g.isfinite().all() and g.dtype == dtype for g in torch.autograd.grad(value, [z1, z2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(z1.float(), z2.float()), value)


@every
def test_extremes_stay_finite(loss: PairLoss) -> None:
    """Scores of ±100: far beyond what exponentials hold in float32. Views that agree, that are opposite, all equal."""
    cold = partial(loss, temperature=0.01) if "temperature" in loss.keywords else loss
    for z1, z2 in (
        (torch.eye(6), torch.eye(6)),
        (torch.eye(6), -torch.eye(6)),
        (torch.ones(6, 6), torch.ones(6, 6)),
        (torch.ones(6, 6), -torch.ones(6, 6)),
    ):
        x1, x2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        value = cold(x1, x2)
        assert value.isfinite()
        assert gradients(value, x1, x2).isfinite().all()


@every
def test_calls_that_cannot_be_meant(loss: PairLoss) -> None:
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="only one of all1 and all2"):
        loss(z, z, all1=z)
    with pytest.raises(ValueError, match=r"one image|at least 2 samples"):
        loss(z[:1], z[:1])
