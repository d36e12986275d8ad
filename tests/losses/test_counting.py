"""The counting loss: a slow oracle from the equation, sheet 5's checks, and what leaves it unchanged."""

import pytest
import torch
from torch import Tensor

from selfsight.losses.counting import counting


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def counts(b: int = 6, k: int = 5, *, scale: float = 1.0) -> list[Tensor]:
    """Whole, tiles and other, some pairs within the margin and some beyond it."""
    size = scale * torch.linspace(0.2, 3, b, dtype=torch.float64)
    shapes = ((b, k), (b, 4, k), (b, k))
    return [(torch.rand(s, dtype=torch.float64) * size.view(-1, *[1] * (len(s) - 1))).requires_grad_() for s in shapes]


def slow(whole: Tensor, tiles: Tensor, other: Tensor, margin: float) -> Tensor:
    """Equation 5 of the paper, one image and one unit at a time."""
    losses = []
    for x in range(len(whole)):
        equal = apart = torch.zeros((), dtype=whole.dtype)
        for unit in range(whole.shape[1]):
            total = tiles[x, 0, unit] + tiles[x, 1, unit] + tiles[x, 2, unit] + tiles[x, 3, unit]
            equal = equal + (whole[x, unit] - total) ** 2
            apart = apart + (other[x, unit] - total) ** 2
        losses.append(equal + (margin - apart if apart < margin else torch.zeros_like(apart)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [10.0, 25.0])
def test_it_equals_the_papers_equation(margin: float) -> None:
    given = counts()
    mine, theirs = counting(*given, margin=margin), slow(*given, margin)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    apart = (given[2] - given[1].sum(1)).square().sum(1)
    assert (apart < margin).any()
    assert (apart > margin).any()


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(counting, counts())


@pytest.mark.parametrize("margin", [10.0, 3.0])
def test_counting_nothing_costs_the_margin_and_is_flat(margin: float) -> None:
    """Sheet 5, check a: the trivial solution of the first term is what the second excludes."""
    given = [torch.zeros_like(x).requires_grad_() for x in counts()]
    loss = counting(*given, margin=margin)
    assert loss.item() == margin
    assert all(not g.any() for g in torch.autograd.grad(loss, given))


def test_tiles_may_stand_in_any_order() -> None:
    """Sheet 5, check c."""
    whole, tiles, other = counts()
    torch.testing.assert_close(counting(whole, tiles[:, [2, 0, 3, 1]], other), counting(whole, tiles, other))


def test_another_image_that_is_far_away_has_no_say() -> None:
    """Sheet 5, check c: value and gradient of the second term are exactly 0."""
    whole, tiles, other = counts()
    far = (other.detach() + 50).requires_grad_()
    loss = counting(whole, tiles, far)
    assert torch.equal(loss, (whole - tiles.sum(1)).square().sum(1).mean())
    (grad,) = torch.autograd.grad(loss, far)
    assert not grad.any()


def test_right_counts_cost_nothing() -> None:
    _, tiles, _ = counts(scale=3.0)
    whole = tiles.sum(dim=1)
    assert counting(whole, tiles, whole.roll(1, 0) + 40).item() == 0
    assert counting(whole, tiles, whole).item() == 10  # another image with the very same counts


def test_an_image_is_not_told_from_itself() -> None:
    given = counts()
    differs = torch.tensor([True, False] * 3)
    one_by_one = [
        counting(*(x[i : i + 1] for x in given)) if differs[i] else (given[0][i] - given[1][i].sum(0)).square().sum()
        for i in range(6)
    ]
    torch.testing.assert_close(counting(*given, differs=differs), torch.stack(one_by_one).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    given = [(40 * x.detach()).to(dtype).requires_grad_() for x in counts(k=1000)]
    loss = counting(*given)
    assert loss.dtype == torch.float32
    assert loss > 70_000  # more than float16 holds
    torch.testing.assert_close(loss, counting(*(x.float() for x in given)))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, given))


def test_a_margin_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="a margin of 0; without one above 0"):
        counting(*counts(), margin=0)
