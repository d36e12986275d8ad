"""VICReg: the whole loss against its equation, weights and terms, and what it hands over."""

import pytest
import torch
from stand_ins import SmallEncoder, take_step, two_views
from torch import Tensor

from selfsight.methods.vicreg import VICReg
from selfsight.parts import heads


def vicreg(*weights: float) -> VICReg:
    torch.manual_seed(0)
    expander = heads.mlp(6, 8, 5, out_bias=False)
    return VICReg(SmallEncoder(), expander, weights=weights or (25.0, 25.0, 1.0)).double()


def slow(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The official code's three terms, one feature at a time."""
    n, d = z1.shape
    agree = sum((a - b).square().sum() for a, b in zip(z1, z2, strict=True)) / (n * d)
    hinge, together = torch.zeros(()), torch.zeros(())
    for z in (z1, z2):
        for i in range(d):
            a = z[:, i] - z[:, i].sum() / n
            hinge = hinge + (1 - ((a * a).sum() / (n - 1) + 1e-4).sqrt()).clamp_min(0) / (2 * d)
            for j in range(d):
                b = z[:, j] - z[:, j].sum() / n
                together = together + (((a * b).sum() / (n - 1)) ** 2 / d if i != j else 0)
    return agree, hinge, together


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 3.0, 7.0)])
def test_loss_and_gradient_equal_the_equation(weights: tuple[float, float, float]) -> None:
    method, batch = vicreg(*weights), two_views(12, dtype=torch.float64)
    objective = take_step(method, batch, moves=False)
    parameters = [p for _, p in method.trainables()["main"]]
    grads = [p.grad.clone() for p in parameters]
    terms = slow(*(method.expander(method.encoder(x)) for x in (batch.x1, batch.x2)))
    expected = sum(w * term for w, term in zip(weights, terms, strict=True))
    torch.testing.assert_close(objective.loss, expected)
    for mine, theirs in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    for name, term in zip(("invariance", "variance", "covariance"), terms, strict=True):
        torch.testing.assert_close(objective.log[name], term.detach())


def test_collapsed_branches_are_pulled_apart() -> None:
    """Without the variance term equal embeddings are a minimum; with it they cost most of its weight."""
    method, batch = vicreg(), two_views(8, dtype=torch.float64)
    with torch.no_grad():
        method.expander[-1].weight.mul_(1e-3)
    objective = take_step(method, batch, moves=False)
    assert objective.loss.item() == pytest.approx(25 * 0.99, rel=0.01)
    method.weights = (25.0, 0.0, 1.0)
    assert take_step(method, batch, moves=False).loss.item() < 0.01


def test_it_learns_to_vary() -> None:
    method, batch = vicreg(), two_views(32, dtype=torch.float64)
    with torch.no_grad():
        method.expander[-1].weight.mul_(0.1)
    logs = [take_step(method, batch, lr=0.02).log for _ in range(40)]
    assert logs[0]["variance"] > 0.7
    assert logs[-1]["variance"] < 0.5 * logs[0]["variance"]


def test_what_it_hands_over() -> None:
    method, batch = vicreg(), two_views(8, dtype=torch.float64)
    watch = take_step(method, batch, moves=False).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (16, 6), "projection": (16, 5)}
    torch.testing.assert_close(watch["projection"][:8], method.expander(method.encoder(batch.x1)).detach())
