"""Contrast of groups: a slow oracle from the equation, sheet 7's closed forms, and what leaves it unchanged."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from selfsight.losses.grouped import grouped_contrast


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def groups(b: int = 5, v: int = 4, d: int = 6) -> Tensor:
    return torch.randn(b, v, d, dtype=torch.float64, requires_grad=True)


def slow(z: Tensor, temperature: float) -> Tensor:
    """The equation, one member at a time, by its image's number."""
    rows = [(image, normalize(member, dim=0)) for image, group in enumerate(z) for member in group]
    losses = []
    for i, (image, f) in enumerate(rows):
        scores = [torch.exp((f * g).sum() / temperature) for _, g in rows]
        below = sum(score for k, score in enumerate(scores) if k != i)
        mates = [k for k, (other, _) in enumerate(rows) if other == image and k != i]
        losses.append(sum(-torch.log(scores[p] / below) for p in mates) / len(mates))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("v", "temperature"), [(4, 0.3), (2, 0.07), (3, 1.0)])
def test_it_equals_the_equation(v: int, temperature: float) -> None:
    z = groups(v=v)
    mine, theirs = grouped_contrast(z, temperature=temperature), slow(z, temperature)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    (a,), (b,) = torch.autograd.grad(mine, z), torch.autograd.grad(theirs, z)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda z: grouped_contrast(z, temperature=0.5), groups(3))


def test_all_alike_costs_the_log_of_all_others() -> None:
    """Sheet 7, check a."""
    z = torch.ones(6, 4, 3, dtype=torch.float64)
    assert grouped_contrast(z, temperature=0.3).item() == pytest.approx(math.log(23), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 0.07])
def test_perfect_clusters(temperature: float) -> None:
    """Sheet 7, check b: orthogonal images."""
    n = 6
    z = torch.eye(n, dtype=torch.float64)[:, None].expand(n, 4, n)
    expected = math.log(3 + (4 * n - 4) * math.exp(-1 / temperature))
    assert grouped_contrast(z, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


def test_no_embeddings_fall_below_log_3() -> None:
    """Sheet 7, check b: even where plain gradient descent is let go."""
    z = groups(4).detach().requires_grad_()
    for _ in range(200):
        loss = grouped_contrast(z, temperature=0.1)
        assert loss.item() >= math.log(3)
        (grad,) = torch.autograd.grad(loss, z)
        z = (z - grad).detach().requires_grad_()
    assert loss.item() < math.log(3) + 0.02


def test_the_base_temperature_is_a_factor() -> None:
    z = groups()
    plain, scaled = grouped_contrast(z, temperature=0.3), grouped_contrast(z, temperature=0.3, base_temperature=0.07)
    torch.testing.assert_close(scaled, plain * (0.3 / 0.07))


def test_order_and_length_do_not_matter() -> None:
    z = groups().detach()
    value = grouped_contrast(z, temperature=0.3)
    torch.testing.assert_close(grouped_contrast(z[[3, 0, 4, 1, 2]][:, [2, 3, 0, 1]], temperature=0.3), value)
    torch.testing.assert_close(grouped_contrast(z * (1 + torch.rand(5, 4, 1)), temperature=0.3), value)


def test_parts_are_the_whole() -> None:
    """Processes played one after the other: values average, gradients average."""
    z = groups(6)
    whole = grouped_contrast(z, temperature=0.3)
    parts = [grouped_contrast(z[o : o + 2], temperature=0.3, everyone=z, offset=o) for o in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    (a,), (b,) = torch.autograd.grad(sum(parts) / 3, z), torch.autograd.grad(whole, z)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    z = groups().detach().to(dtype).requires_grad_()
    value = grouped_contrast(z, temperature=0.07)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, grouped_contrast(z.float(), temperature=0.07))
    (grad,) = torch.autograd.grad(value, z)
    assert grad.isfinite().all()


def test_calls_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="groups of 1; a member needs another"):
        grouped_contrast(groups(v=1), temperature=0.3)
    with pytest.raises(ValueError, match="offset 1 for 5 groups among 5"):
        grouped_contrast(groups(), temperature=0.3, everyone=groups(), offset=1)
