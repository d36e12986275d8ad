"""Colorization's loss against loops over places and bins; soft codes, weights and annealed mean by identities."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.colour import (
    SoftCode,
    annealed_mean,
    code_cross_entropy,
    frequencies,
    rarity,
    rebalanced_cross_entropy,
    soft_code,
)


def centres() -> Tensor:
    steps = torch.arange(-20.0, 21.0, 10.0, dtype=torch.float64)
    return torch.cartesian_prod(steps, steps)


def colours() -> Tensor:
    return 25 * torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def logits(q: int = 25) -> Tensor:
    return torch.randn(2, q, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(code: SoftCode, q: int) -> Tensor:
    b, _, h, w = code.bins.shape
    return torch.zeros(b, q, h, w, dtype=code.shares.dtype).scatter_add_(1, code.bins, code.shares)


def naive_code(ab: Tensor, bins: Tensor, k: int, sigma: float) -> Tensor:
    b, _, h, w = ab.shape
    z = torch.zeros(b, len(bins), h, w, dtype=torch.float64)
    for n in range(b):
        for i in range(h):
            for j in range(w):
                d = [math.dist(ab[n, :, i, j].tolist(), centre.tolist()) for centre in bins]
                near = sorted(range(len(d)), key=d.__getitem__)[:k]
                weights = [math.exp(-(d[q] ** 2) / (2 * sigma**2)) for q in near]
                for q, weight in zip(near, weights, strict=True):
                    z[n, q, i, j] = weight / sum(weights)
    return z


@pytest.mark.parametrize(("k", "sigma"), [(5, 5.0), (10, 5.0), (1, 3.0)])
def test_soft_codes_by_definition(k: int, sigma: float) -> None:
    code = soft_code(colours(), centres(), neighbours=k, sigma=sigma)
    z = dense(code, 25)
    torch.testing.assert_close(z, naive_code(colours(), centres(), k, sigma))
    torch.testing.assert_close(z.sum(1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert int((z > 0).sum(1).max()) <= k
    assert torch.equal(code.bins[:, 0], z.argmax(1))


def test_a_bins_own_colour_comes_back() -> None:
    inner = torch.tensor([[0.0, 0.0], [10.0, -10.0]], dtype=torch.float64).T[None, :, :, None]
    z = dense(soft_code(inner, centres()), 25)
    torch.testing.assert_close(torch.einsum("bqhw,qc->bchw", z, centres()), inner)


def naive_loss(logits: Tensor, z: Tensor, weights: Tensor, counted: Tensor) -> Tensor:
    b, q, h, w = logits.shape
    total = torch.zeros((), dtype=torch.float64)
    for n in range(b):
        for i in range(h):
            for j in range(w):
                p = logits[n, :, i, j].exp() / logits[n, :, i, j].exp().sum()
                cost = -sum(z[n, k, i, j] * p[k].log() for k in range(q))
                total = total + counted[n] * weights[int(z[n, :, i, j].argmax())] * cost
    return total / (b * h * w)


def test_the_loss_by_definition_with_its_gradient() -> None:
    code = soft_code(colours(), centres())
    weights = rarity(torch.rand(25, dtype=torch.float64).softmax(0))
    counted = torch.tensor([1.0, 0.5], dtype=torch.float64)
    x, y = (logits().requires_grad_() for _ in range(2))
    found = rebalanced_cross_entropy(x, code, weights, counted)
    expected = naive_loss(y, dense(code, 25), weights, counted)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert torch.autograd.gradcheck(
        lambda v: rebalanced_cross_entropy(v, code, weights, counted), logits().requires_grad_()
    )


def test_equal_logits_cost_the_log_of_the_bins() -> None:
    code = soft_code(colours(), centres())
    torch.testing.assert_close(
        code_cross_entropy(torch.zeros(2, 25, 3, 4, dtype=torch.float64), code),
        torch.full((2, 3, 4), math.log(25), dtype=torch.float64),
    )


def test_what_does_not_count_has_no_gradient_at_all() -> None:
    x = logits().requires_grad_()
    code = soft_code(colours(), centres())
    rebalanced_cross_entropy(x, code, torch.ones(25), torch.tensor([0.0, 1.0])).backward()
    assert x.grad is not None
    assert not x.grad[0].any()
    assert x.grad[1].any()


def test_weights_have_a_mean_of_one_and_grow_with_rarity() -> None:
    prior = torch.rand(313, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    prior /= prior.sum()
    weights = rarity(prior)
    assert float((prior * weights).sum()) == pytest.approx(1)
    assert torch.equal(weights.argsort(), prior.argsort(descending=True))
    most = 1 + 313 * float(prior.max())  # what the uniform share allows
    assert float(weights.max() / weights.min()) == pytest.approx(most, rel=1e-6)
    torch.testing.assert_close(rarity(prior, mix=1.0), torch.ones_like(prior))
    torch.testing.assert_close(rarity(torch.full((7,), 1 / 7)), torch.ones(7))


def test_frequencies_are_the_mean_code() -> None:
    code = soft_code(colours(), centres())
    torch.testing.assert_close(frequencies(code, 25), dense(code, 25).mean((0, 2, 3)))
    assert float(frequencies(code, 25).sum()) == pytest.approx(1)


def test_the_annealed_mean_lies_between_the_mean_and_the_most_probable() -> None:
    x, bins = logits(), centres()
    mean = torch.einsum("bqhw,qc->bchw", x.softmax(1), bins)
    torch.testing.assert_close(annealed_mean(x, bins, temperature=1.0), mean)
    mode = bins[x.argmax(1)].permute(0, 3, 1, 2)
    torch.testing.assert_close(annealed_mean(x, bins, temperature=1e-4), mode)
    powers = x.softmax(1) ** (1 / 0.38)
    expected = torch.einsum("bqhw,qc->bchw", powers / powers.sum(1, keepdim=True), bins)
    torch.testing.assert_close(annealed_mean(x, bins), expected)


def test_half_types_are_computed_in_full() -> None:
    code = soft_code(colours().bfloat16(), centres())
    assert code.shares.dtype == torch.float32
    assert code_cross_entropy(logits().bfloat16(), code).dtype == torch.float32
