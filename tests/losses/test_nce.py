"""Noise-contrastive estimation: the papers' ratio form as oracle, sheet 1's closed forms, and what it estimates."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.nce import log_partition, nce, sampled_softmax


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def scores(b: int, k: int, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    positive, negatives = scale * torch.randn(b, dtype=torch.float64), scale * torch.randn(b, k, dtype=torch.float64)
    return positive.requires_grad_(), negatives.requires_grad_()


def slow(positive: Tensor, negatives: Tensor, z: Tensor, n: int) -> Tensor:
    """h = P / (P + m / n), one score at a time: the papers' ratio."""
    m, losses = negatives.shape[1], []
    for i in range(len(positive)):
        p = positive[i].exp() / z
        loss = -(p / (p + m / n)).log()
        for k in range(m):
            p = negatives[i, k].exp() / z
            loss = loss - (1 - p / (p + m / n)).log()
        losses.append(loss)
    return sum(losses) / len(losses)


def test_equals_the_ratio_form() -> None:
    positive, negatives = scores(4, 6)
    log_z = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    mine = nce(positive, negatives, log_z=log_z, log_noise=-math.log(50))
    theirs = slow(positive, negatives, log_z.exp(), 50)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    inputs = [positive, negatives, log_z]
    for a, b in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradcheck() -> None:
    log_z = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, n, z: nce(p, n, log_z=z, log_noise=-3.0), (*scores(3, 4), log_z))
    assert torch.autograd.gradcheck(sampled_softmax, scores(3, 4))


@pytest.mark.parametrize("k", [1, 7, 4096])
def test_even_odds_everywhere(k: int) -> None:
    """Sheet 1, check 1: all log-odds 0."""
    level = torch.tensor(2.0, dtype=torch.float64)
    value = nce(level.expand(3), level.expand(3, k), log_z=2.0, log_noise=-math.log(k))
    assert value.item() == pytest.approx((1 + k) * math.log(2), rel=1e-12)


@pytest.mark.parametrize(("k", "expected"), [(4096, 9.318), (16384, 10.7041), (65536, 12.09)])
def test_a_model_that_equals_the_noise(k: int, expected: float) -> None:
    """Sheet 1, check 2, and sheet 17, check a: log K belongs to the log-odds."""
    zero = torch.zeros((), dtype=torch.float64)
    value = nce(zero.expand(2), zero.expand(2, k), log_z=math.log(1000), log_noise=-math.log(1000)).item()
    assert value == pytest.approx(math.log(1 + k) + k * math.log(1 + 1 / k), rel=1e-9)
    assert value == pytest.approx(expected, abs=5e-3 if k > 16384 else 5e-4)


def test_the_first_batchs_constant_makes_the_mean_density_uniform() -> None:
    """Sheet 21, check 1."""
    positive, negatives = scores(5, 9, scale=3.0)
    log_z = log_partition(positive, negatives, samples=400)
    density = (torch.cat([positive[:, None], negatives], dim=1) - log_z).exp()
    assert density.mean().item() == pytest.approx(1 / 400, rel=1e-9)
    assert not log_z.requires_grad


def test_it_estimates_the_constant_of_a_gaussian() -> None:
    """Sheet 1, check 3: the learnt c = -log Z of an unnormalised Gaussian comes to -log(2 pi sigma^2) / 2."""
    generator = torch.Generator().manual_seed(1)
    sigma, noise_sigma, n, nu = 0.7, 1.5, 40_000, 10
    data = sigma * torch.randn(n, dtype=torch.float64, generator=generator)
    noise = noise_sigma * torch.randn(n, nu, dtype=torch.float64, generator=generator)

    def score(x: Tensor) -> Tensor:  # log of the unnormalised model over the noise's density
        return -(x**2) / (2 * sigma**2) + x**2 / (2 * noise_sigma**2) + math.log(2 * math.pi * noise_sigma**2) / 2

    log_z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(60):
        (g,) = torch.autograd.grad(nce(score(data), score(noise), log_z=log_z, log_noise=0.0), log_z)
        with torch.no_grad():
            log_z -= 2 * g
    assert log_z.item() == pytest.approx(math.log(2 * math.pi * sigma**2) / 2, abs=0.02)


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_in_its_constant_it_is_convex_and_at_the_best_one_curved_by_one_at_most(scale: float) -> None:
    """The derivative is one less the samples held for data, for each datum: what the recipe's optimiser counts on."""
    positive, negatives = scores(6, 40, scale=scale)
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        log_z = torch.tensor(middle, dtype=torch.float64, requires_grad=True)
        loss = nce(positive, negatives, log_z=log_z, log_noise=-math.log(50))
        (slope,) = torch.autograd.grad(loss, log_z, create_graph=True)
        low, high = (middle, high) if slope < 0 else (low, middle)
    odds = torch.cat([positive[:, None], negatives], dim=1) - middle - math.log(40 / 50)
    assert odds.sigmoid().sum(dim=1).mean().item() == pytest.approx(1, abs=1e-9)
    (curvature,) = torch.autograd.grad(slope, log_z)
    assert 0 < curvature.item() <= 1
    far = torch.tensor(middle - 80, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(nce(positive, negatives, log_z=far, log_noise=-math.log(50)), far)
    assert slope.item() == pytest.approx(-40, rel=1e-6)


def test_with_much_noise_its_gradient_is_that_of_the_softmax() -> None:
    """Sheet 17, check c: with the exact constant and ever more noise, maximum likelihood."""
    n, d = 30, 5
    bank = torch.randn(n, d, dtype=torch.float64)
    f = torch.randn(1, d, dtype=torch.float64, requires_grad=True)
    exact = (bank @ f[0]).logsumexp(dim=0)
    (wanted,) = torch.autograd.grad(exact - bank[3] @ f[0], f)
    alike: list[float] = []
    for rounds in (1, 100):  # every row of the bank so many times: the expectation without the chance
        rows = torch.arange(n).repeat(rounds)[None]
        negatives = (bank[rows] * f[:, None]).sum(dim=2)
        loss = nce((bank[3] * f).sum(dim=1), negatives, log_z=exact.detach(), log_noise=-math.log(n))
        (got,) = torch.autograd.grad(loss, f)
        alike.append(torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0).item())
    assert alike[1] > alike[0]
    assert alike[1] > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_stay_finite(dtype: torch.dtype) -> None:
    """Sheet 1, check 4."""
    positive = torch.tensor([1e3, -1e3], dtype=dtype, requires_grad=True)
    negatives = torch.tensor([[1e3, -1e3], [-1e3, 1e3]], dtype=dtype, requires_grad=True)
    for value in (
        nce(positive, negatives, log_z=0.0, log_noise=-math.log(50)),
        sampled_softmax(positive, negatives),
    ):
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, [positive, negatives]))
    assert log_partition(positive, negatives, samples=3).isfinite()


def test_sampled_softmax_is_a_cross_entropy_and_leaves_out_what_it_should() -> None:
    positive, negatives = scores(4, 6)
    skip = torch.rand(4, 6) < 0.3
    skip[2] = True  # nothing left to choose from: no loss, and a gradient of zero
    logits = torch.cat([positive[:, None], negatives.masked_fill(skip, -1e300)], dim=1)
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    value = sampled_softmax(positive, negatives, skip=skip)
    torch.testing.assert_close(value, expected)
    grads = torch.autograd.grad(value, [positive, negatives])
    assert all(g.isfinite().all() for g in grads)
    assert grads[0][2] == 0
    assert (grads[1][skip] == 0).all()


def test_no_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 negative"):
        nce(torch.zeros(2), torch.zeros(2, 0), log_z=0.0, log_noise=0.0)
