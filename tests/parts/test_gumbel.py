"""Gumbel noise by a hash: its distribution, its independence, and that it is the sample's alone."""

import math

import torch
from torch import Tensor

from selfsight.parts.gumbel import gumbel, gumbel_softmax


def noise(samples: int = 64, count: int = 4096) -> Tensor:
    seed = torch.randint(2**24, (samples, 2), generator=torch.Generator().manual_seed(0))
    return gumbel(seed, count)


def test_it_has_the_distribution() -> None:
    found = noise().flatten().double()
    assert abs(float(found.mean()) - 0.57722) < 0.01
    assert abs(float(found.var()) - math.pi**2 / 6) < 0.02
    uniform = torch.exp(-torch.exp(-found)).sort().values
    steps = torch.arange(1, len(uniform) + 1).double() / len(uniform)
    assert float((uniform - steps).abs().max()) < 1.95 / math.sqrt(len(uniform))  # Kolmogorov and Smirnov at 0.1 %


def test_places_and_samples_are_independent() -> None:
    x = noise()
    x = (x - x.mean()) / x.std()
    bound = 4 / math.sqrt(x.numel())
    for shift in (1, 2, 8, 64, 1024):
        assert abs(float((x * x.roll(shift, dims=1)).mean())) < bound, f"places {shift} apart"
    for shift in (1, 5):
        assert abs(float((x * x.roll(shift, dims=0)).mean())) < bound, f"samples {shift} apart"
    near = gumbel(torch.tensor([[5, 9], [6, 9], [5, 10]]), 50_000)
    near = (near - near.mean()) / near.std()
    products = near @ near.mT / near.shape[1]
    assert float((products - torch.eye(3)).abs().max()) < 0.05, "neighbouring seeds have other noise"


def test_it_is_the_samples_alone() -> None:
    seed = torch.randint(2**24, (8, 2))
    assert torch.equal(gumbel(seed, 100)[3], gumbel(seed[3:4], 100)[0])
    assert torch.equal(gumbel(seed, 100)[:, :50], gumbel(seed, 50))
    assert bool(gumbel(seed, 100_000).isfinite().all())


def test_a_cold_softmax_draws_from_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).view(1, 4, 1, 1).expand(2000, 4, 2, 2)
    seed = torch.randint(2**24, (2000, 2), generator=torch.Generator().manual_seed(0))
    drawn = gumbel_softmax(logits, seed, temperature=0.01)
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(2000, 2, 2))
    share = drawn.mean(dim=(0, 2, 3))
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.02, rtol=0)


def test_a_warm_softmax_is_flat() -> None:
    logits, seed = torch.zeros(4, 5, 3, 3), torch.randint(2**24, (4, 2))
    assert float((gumbel_softmax(logits, seed, temperature=1e3) - 0.2).abs().max()) < 0.01
