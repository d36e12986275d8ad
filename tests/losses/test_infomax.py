"""AMDIM's loss: a slow oracle from the equation, sheet 20's closed forms, clipping, and blocks."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses import infomax
from selfsight.losses.infomax import local_infomax, soft_clip


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[30, 1 << 18])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a block, or all in one."""
    monkeypatch.setitem(infomax._SCORES, "cpu", request.param)


def features(b: int, d: int, places: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(b, d, dtype=dtype, requires_grad=True), torch.randn(
        b, d, places, dtype=dtype, requires_grad=True
    )


def slow(source: Tensor, targets: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The sheet's equation, one image, one place and one negative at a time."""
    (b, d), places = source.shape, targets.shape[2]
    losses, squares = [], []
    for i in range(b):
        raw = {(j, k): (source[i] * targets[j, :, k]).sum() / d**0.5 for j in range(b) for k in range(places)}
        u = {key: clip * (s / clip).tanh() for key, s in raw.items()}
        negatives = sum(u[j, k].exp() for j in range(b) if j != i for k in range(places))
        losses += [-(u[i, k].exp() / (u[i, k].exp() + negatives)).log() for k in range(places)]
        squares += [s**2 for s in raw.values()]
    return sum(losses) / len(losses), sum(squares) / len(squares)


@pytest.mark.parametrize("clip", [0.7, 20.0])
def test_it_equals_the_equation(blocks: None, clip: float) -> None:
    source, targets = features(5, 6, 3)
    mine, theirs = local_infomax(source, targets, clip=clip), slow(source, targets, clip)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    both = [source, targets]
    for weight in (0.0, 0.3):
        ours = torch.autograd.grad(mine[0] + weight * mine[1], both, retain_graph=True)
        other = torch.autograd.grad(theirs[0] + weight * theirs[1], both, retain_graph=True)
        for a, b in zip(ours, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_gradcheck(blocks: None) -> None:
    assert torch.autograd.gradcheck(lambda x, t: sum(local_infomax(x, t, clip=2.0)), features(4, 3, 2))


@pytest.mark.parametrize(("places", "value"), [(25, 9.3907), (49, 10.0636)])
def test_scores_of_zero(places: int, value: float) -> None:
    """Sheet 20, check 1: log(1 + 479 l)."""
    loss, square = local_infomax(torch.zeros(480, 4), torch.randn(480, 4, places))
    assert loss.item() == pytest.approx(math.log(1 + 479 * places), rel=1e-6)
    assert loss.item() == pytest.approx(value, abs=1e-4)
    assert square.item() == 0


def test_the_other_places_of_an_image_are_no_negatives(blocks: None) -> None:
    """An image's own map weighs on its own terms only, place by place, so the loss of two images adds up so."""
    source, targets = features(2, 6, 3)
    u = torch.einsum("bd,jdl->bjl", source, targets) / 6**0.5
    terms = [torch.log(1 + u[i, 1 - i].exp().sum() / u[i, i, k].exp()) for i in range(2) for k in range(3)]
    torch.testing.assert_close(local_infomax(source, targets, clip=1e6).loss, sum(terms) / 6)


def test_parts_are_the_whole(blocks: None) -> None:
    source, targets = features(6, 5, 4)
    whole = local_infomax(source, targets)
    parts = [local_infomax(source[o : o + 2], targets[o : o + 2], everyone=targets, offset=o) for o in (0, 2, 4)]
    both = [source, targets]
    for k in range(2):
        mean = sum(part[k] for part in parts) / 3
        torch.testing.assert_close(mean, whole[k])
        grads = [torch.autograd.grad(x, both, retain_graph=True) for x in (mean, whole[k])]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_scores_are_bounded_and_saturate() -> None:
    """Sheet 20, check 4."""
    x = torch.tensor([-1e4, -30.0, 0.0, 1e-3, 1e4], requires_grad=True)
    y = soft_clip(x, 20.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.abs().max() <= 20
    assert slope[0] == slope[-1] == 0
    assert slope[2] == 1
    torch.testing.assert_close(y[3], x[3])
    source = torch.ones(3, 4, requires_grad=True)
    targets = torch.cat([torch.full((1, 4, 2), 1e4), torch.full((2, 4, 2), -1e4)])
    loss, _ = local_infomax(source, targets)
    assert loss.item() == pytest.approx(2 / 3 * (40 + math.log(2)), abs=1e-3)  # a bound on both sides: 2 c
    assert torch.autograd.grad(loss, source)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    source, targets = features(8, 6, 3, dtype)
    value = local_infomax(source, targets)
    assert {x.dtype for x in value} == {torch.float32}
    torch.testing.assert_close(value.loss, local_infomax(source.float(), targets.float()).loss)
    grads = torch.autograd.grad(sum(value), [source, targets])
    assert all(g.isfinite().all() and g.dtype == dtype for g in grads)
    huge = local_infomax(source * 1e3, targets * 1e3)
    assert all(x.isfinite() for x in huge)


def test_calls_that_cannot_be_meant() -> None:
    source, targets = features(2, 3, 2)
    with pytest.raises(ValueError, match="offset 1 for 2 images among 2"):
        local_infomax(source, targets, offset=1)
    with pytest.raises(ValueError, match="at least two images"):
        local_infomax(source[:1], targets[:1])
