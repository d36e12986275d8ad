"""Colour operations against torchvision, each alone and in their drawn order."""

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF  # noqa: N812

from selfsight.views import colour
from selfsight.views.view import BRIGHTNESS, CONTRAST, HUE, SATURATION

THEIRS = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}
FACTORS = (0.0, 0.2, 0.7, 1.0, 1.3, 1.8)


def small(pictures: Tensor) -> Tensor:
    """At most 120 px of each side, so that the large photograph stays quick."""
    return pictures[:, :, :120, :120]


def planes(images: Tensor) -> Tensor:
    return (images.float() / 255).transpose(0, 1).contiguous()


def gap(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.transpose(0, 1) * 255 - theirs.float()).abs()


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_blend_has_torchvisions_pixels(pictures: Tensor, operation: int, factor: float) -> None:
    images = small(pictures)
    n = len(images)
    ours = colour.blend_(planes(images), torch.full((n,), factor), torch.full((n,), operation))
    distance = gap(ours, THEIRS[operation](images, factor))
    assert distance.mean() <= 2
    assert distance.max() <= 8
    exact = THEIRS[operation](images.double() / 255, factor)
    torch.testing.assert_close(ours.transpose(0, 1).double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [-0.5, -0.2, -0.03, 0.0, 0.1, 0.37, 0.5])
def test_hue_has_torchvisions_pixels(pictures: Tensor, turns: float) -> None:
    images = small(pictures)
    ours = colour.turn_hue_(planes(images), torch.full((len(images),), turns))
    distance = gap(ours, TF.adjust_hue(images, turns))
    assert distance.mean() <= 2
    assert distance.max() <= 8
    exact = TF.adjust_hue(images.double() / 255, turns)
    torch.testing.assert_close(ours.transpose(0, 1).double(), exact, atol=2e-5, rtol=0)


def test_hue_on_every_corner_of_the_colour_cube() -> None:
    corners = torch.tensor(list(itertools.product([0, 128, 255], repeat=3)), dtype=torch.uint8).T[None, :, None]
    for turns in (-0.41, 1 / 6, 1 / 3, 0.5):
        ours = colour.turn_hue_(planes(corners), torch.tensor([turns])).transpose(0, 1)
        exact = TF.adjust_hue(corners.double() / 255, turns)
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=0)
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(colour.turn_hue_(red, torch.tensor([1 / 3])).flatten(), torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize("hue_at", range(4))
def test_jitter_runs_each_samples_operations_in_its_own_order(hue_at: int) -> None:
    orders = torch.tensor([order for order in itertools.permutations(range(4)) if order[hue_at] == HUE])
    images = torch.randint(0, 256, (len(orders), 3, 9, 9), dtype=torch.uint8)
    factors = torch.tensor([1.5, 0.4, 1.7, 0.15]).repeat(len(orders), 1) - 0.05 * torch.rand(len(orders), 4)
    ours = colour.jitter_(planes(images), factors, orders, hue_at)
    for k, order in enumerate(orders.tolist()):
        theirs = images[k].double() / 255
        for operation in order:
            theirs = THEIRS[operation](theirs, factors[k, operation].item())
        torch.testing.assert_close(ours[:, k].double(), theirs, atol=5e-5, rtol=0)


def test_greyscale_touches_the_chosen_samples_alone(pictures: Tensor) -> None:
    images = small(pictures)
    images = torch.cat([images, images.flip(-1)])
    chosen = torch.arange(1, len(images), 2)
    before, x = planes(images), planes(images)
    colour.greyscale_(x, chosen)
    distance = gap(x[:, chosen], TF.rgb_to_grayscale(images[chosen], 3))
    assert distance.mean() <= 2
    assert distance.max() <= 8
    others = torch.arange(0, len(images), 2)
    assert torch.equal(x[:, others], before[:, others])


def test_solarise_touches_the_chosen_samples_alone(pictures: Tensor) -> None:
    images = small(pictures)
    images = torch.cat([images, images.flip(-1)])
    chosen = torch.arange(0, len(images), 2)
    before, x = planes(images), planes(images)
    colour.solarise_(x, chosen, 128 / 255)
    assert gap(x[:, chosen], TF.solarize(images[chosen], 128)).max() <= 0.01
    others = torch.arange(1, len(images), 2)
    assert torch.equal(x[:, others], before[:, others])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_keep_brightness_and_contrast_alone(channels: int) -> None:
    images = torch.randint(0, 256, (4, channels, 6, 6), dtype=torch.uint8)
    x = planes(images)
    order = torch.tensor([[BRIGHTNESS, HUE, CONTRAST, SATURATION]]).repeat(4, 1)
    colour.jitter_(x, torch.tensor([[0.6, 0.5, 0.3, 0.4]]).repeat(4, 1), order, 1)
    bright = images.double() / 255 * 0.6
    expected = 0.5 * bright + 0.5 * bright.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(x.transpose(0, 1).double(), expected, atol=1e-6, rtol=0)
    before = x.clone()
    assert torch.equal(colour.greyscale_(x, torch.arange(4)), before)
