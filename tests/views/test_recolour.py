"""Exemplar-CNN's colours against colorsys and an eigendecomposition, pixel by pixel."""

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight.views import recolour


def pictures() -> Tensor:
    return torch.rand(3, 5, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def numbers(n: int) -> Tensor:
    return torch.rand(n, recolour.DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_contrast_scales_each_component_about_the_mean() -> None:
    x = pictures()
    factors = recolour.between(numbers(5)[:, :3], (0.5, 2.0))
    axes, _ = np.linalg.qr(np.array(recolour._COMPONENTS))
    mean = np.array(recolour._MEAN)
    found = recolour.contrast(x, factors)
    for n in range(5):
        for row, column in ((0, 0), (3, 9), (11, 4)):
            pixel = x[:, n, row, column].numpy() - mean
            parts = [float(f) * (pixel @ axis) * axis for f, axis in zip(factors[n], axes.T, strict=True)]
            expected = np.clip(mean + sum(parts), 0, 1)
            np.testing.assert_allclose(found[:, n, row, column].numpy(), expected, atol=1e-6)


def test_the_first_component_is_brightness_and_all_are_one_basis() -> None:
    axes = torch.tensor(recolour._COMPONENTS)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3), atol=5e-4, rtol=0)
    torch.testing.assert_close(axes[:, 0].abs(), torch.full((3,), 3**-0.5), atol=0.02, rtol=0)
    x = pictures()
    torch.testing.assert_close(recolour.contrast(x, torch.ones(5, 3, dtype=torch.float64)), x, atol=1e-6, rtol=0)


def test_saturation_value_and_hue_are_those_of_hsv() -> None:
    x, u = pictures(), numbers(5)
    neutral = u.clone()
    neutral[:, :3] = 0.5  # factors of 1
    found = recolour.recolour(x.clone(), neutral)
    powers, times = 0.25 * 16 ** u[:, 3:5], 0.7 * 2 ** u[:, 5:7]
    plus, turn = 0.2 * u[:, 7:9] - 0.1, 0.2 * u[:, 9] - 0.1
    for n in range(5):
        for row, column in ((0, 0), (5, 5), (11, 2), (7, 8)):
            h, s, v = colorsys.rgb_to_hsv(*x[:, n, row, column].tolist())
            s, v = (
                min(max(value ** float(powers[n, k]) * float(times[n, k]) + float(plus[n, k]), 0), 1)
                for k, value in enumerate((s, v))
            )
            expected = colorsys.hsv_to_rgb((h + float(turn[n])) % 1, s, v)
            assert found[:, n, row, column].tolist() == pytest.approx(expected, abs=1e-4)


def test_grey_stays_grey() -> None:
    x = torch.linspace(0, 1, 9).expand(3, 4, 1, 9).clone()
    found = recolour.saturate(x, *torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0)).unbind(0))
    torch.testing.assert_close(found, found[:1].expand_as(found))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_values_stay_in_range_and_samples_apart(channels: int) -> None:
    x = torch.rand(channels, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    u = numbers(6).float()
    together = recolour.recolour(x.clone(), u)
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1
    alone = recolour.recolour(x[:, 2:3].clone(), u[2:3])
    torch.testing.assert_close(together[:, 2:3], alone)
    assert not torch.allclose(together, x)
