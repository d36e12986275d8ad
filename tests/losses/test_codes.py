"""The losses of discrete autoencoders against the equations written out, number by number."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.codes import code_loss, divergence_from_uniform, logit_laplace, map_pixels, unmap_pixels


def given(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def density(x: float, mu: float, scale: float) -> float:
    """The paper's equation (2)."""
    return math.exp(-abs(math.log(x / (1 - x)) - mu) / scale) / (2 * scale * x * (1 - x))


def test_logit_laplace_is_the_papers() -> None:
    mu, log_scale, x = given(2, 3, 4, 4), given(2, 3, 4, 4).flip(0) / 2, map_pixels(given(2, 3, 4, 4).sigmoid())
    mu.requires_grad_()
    log_scale.requires_grad_()
    found = logit_laplace(mu, log_scale, x)
    numbers = zip(x.flatten().tolist(), mu.flatten().tolist(), log_scale.flatten().tolist(), strict=True)
    wanted = sum(-math.log(density(a, b, math.exp(c))) for a, b, c in numbers) / x.numel()
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-12)
    found.backward()
    towards = torch.sign(mu.detach() - torch.logit(x)) / log_scale.detach().exp() / x.numel()
    torch.testing.assert_close(mu.grad, towards)
    distance = (mu.detach() - torch.logit(x)).abs() / log_scale.detach().exp()
    torch.testing.assert_close(log_scale.grad, (1 - distance) / x.numel())


def test_logit_laplace_is_a_density() -> None:
    x = torch.linspace(1e-4, 1 - 1e-4, 2_001, dtype=torch.float64)
    for mu, scale in ((0.0, 0.5), (1.3, 0.3), (-2.0, 0.4)):
        values = [-logit_laplace(*(torch.full((1, 1, 1, 1), v) for v in (mu, math.log(scale))), v.view(1, 1, 1, 1))
                  for v in x]  # fmt: skip
        assert float(torch.trapezoid(torch.stack(values).double().exp(), x)) == pytest.approx(1.0, abs=1e-2)


def test_gradients_are_right() -> None:
    x = map_pixels(given(1, 3, 2, 2).sigmoid())
    mu, log_scale = (given(1, 3, 2, 2) + k for k in (0.0, 0.5))
    assert torch.autograd.gradcheck(
        lambda m, s: logit_laplace(m, s, x), (mu.requires_grad_(), log_scale.requires_grad_())
    )
    assert torch.autograd.gradcheck(divergence_from_uniform, (given(2, 5, 2, 2).requires_grad_(),))
    codes = torch.tensor([0, 3, 3])
    assert torch.autograd.gradcheck(lambda z: code_loss(z, codes), (given(3, 5).requires_grad_(),))


def test_divergence_is_the_sum_over_codes() -> None:
    logits = given(2, 6, 3, 3)
    total = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(3):
                weights = [math.exp(v) for v in logits[b, :, i, j].tolist()]
                q = [w / sum(weights) for w in weights]
                total += sum(p * math.log(p * 6) for p in q)
    assert float(divergence_from_uniform(logits)) == pytest.approx(total / 18, rel=1e-12)


def test_divergence_lies_between_none_and_log_k() -> None:
    sure = torch.zeros(1, 8, 2, 2)
    sure[:, 3] = 100.0
    assert float(divergence_from_uniform(sure)) == pytest.approx(math.log(8), rel=1e-6)
    assert float(divergence_from_uniform(torch.full((1, 8, 2, 2), 7.0))) == pytest.approx(0, abs=1e-6)


def test_code_loss_is_the_sum_of_logarithms() -> None:
    logits, codes = given(4, 6), torch.tensor([5, 0, 2, 2])
    wanted = 0.0
    for row, code in zip(logits.tolist(), codes.tolist(), strict=True):
        wanted -= math.log(math.exp(row[code]) / sum(math.exp(v) for v in row))
    assert float(code_loss(logits, codes)) == pytest.approx(wanted, rel=1e-12)
    uniform = code_loss(torch.zeros(10, 8192), torch.arange(10))
    assert float(uniform) / 10 == pytest.approx(math.log(8192), rel=1e-6)


def test_pixels_there_and_back() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert 0.1 <= float(map_pixels(x).min()) <= float(map_pixels(x).max()) <= 0.9
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
    assert float(unmap_pixels(torch.tensor(0.0))) == 0


def test_half_types_are_computed_in_full() -> None:
    mu = torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)
    assert logit_laplace(mu, mu, torch.full((1, 3, 2, 2), 0.5)).dtype == torch.float32
    assert divergence_from_uniform(mu).dtype == torch.float32
