"""Likeness of layers: the unbiased estimate against its definition, and what it must not see."""

import pytest
import torch

from selfsight.analysis.similarity import Alignment, hsic


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def naive(x: torch.Tensor, y: torch.Tensor) -> float:
    b, one = len(x), torch.ones(len(x), 1, dtype=torch.float64)
    k, m = (z @ z.T for z in (x, y))
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    whole = (one.T @ k @ one) * (one.T @ m @ one) / ((b - 1) * (b - 2))
    return float(((k @ m).trace() + whole - 2 / (b - 2) * one.T @ k @ m @ one) / (b * (b - 3)))


def cka(*features: torch.Tensor) -> torch.Tensor:
    found = Alignment()
    found.add(features)
    return found.matrix()


def test_the_estimate_is_the_definitions() -> None:
    features = [drawn(11, width, seed=width) for width in (3, 5, 8)]
    found = hsic(features)
    for i, x in enumerate(features):
        for j, y in enumerate(features):
            assert found[i, j].item() == pytest.approx(naive(x, y), rel=1e-9)


def test_rotation_scale_and_shift_are_not_seen() -> None:
    x = drawn(40, 6)
    turned = 3 * x @ torch.linalg.qr(drawn(6, 6, seed=1)).Q + 5
    assert cka(x, x)[0, 1].item() == pytest.approx(1)
    assert cka(x, turned)[0, 1].item() == pytest.approx(1, abs=1e-6)
    assert cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1]))[0, 1] < 0.9


def test_independent_features_are_not_alike_though_wide() -> None:
    found = Alignment()
    for seed in range(30):
        found.add([drawn(16, 200, seed=seed), drawn(16, 200, seed=1000 + seed)])
    assert abs(found.matrix()[0, 1]) < 0.05  # the biased form gives 0.9 here


def test_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 images at once, not 3"):
        hsic([drawn(3, 2)])
    few = Alignment()
    few.add([drawn(3, 2)])
    with pytest.raises(ValueError, match="give more"):
        few.matrix()
