"""Lightness and colour: what is seen says nothing of what is asked but through what the picture shows."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.evaluation.subject import view_of
from selfsight.keyed import Key
from selfsight.lab import to_lab, to_rgb
from selfsight.views import colour
from selfsight.views.coloured import coloured
from selfsight.views.pipelines import one_view
from selfsight.views.view import View


def key(n: int) -> Key:
    return Key(0, torch.zeros(n, dtype=torch.long), torch.arange(n))


def pictures(n: int = 6) -> Tensor:
    return torch.randint(0, 256, (n, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_together_they_are_the_view() -> None:
    view = View(size=32, scale=(0.3, 1.0), normalise=None)
    views, plain = coloured(view), one_view(view)
    plan = views.plan(key(6))
    found, rgb = views.render(pictures(), plan, key(6)), plain.render(pictures(), plan, key(6)).x
    light, a, b = to_lab(*rgb.unbind(1))
    torch.testing.assert_close(found.x, (light / 50 - 1)[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(found.ab, torch.stack([a, b], dim=1))
    back = torch.stack(to_rgb(50 * found.x[:, 0] + 50, *found.ab.unbind(1)), dim=1)
    torch.testing.assert_close(back, rgb, atol=1e-3, rtol=0)
    assert torch.equal(found.index, torch.arange(6))


def test_the_plain_view_shows_lightness_as_training_does() -> None:
    views = coloured(View(size=40, scale=None, flip=0.0))
    trained = views.render(pictures(), views.plan(key(6)), key(6)).x
    plain = views.plain
    torch.testing.assert_close(plain.render(pictures(), {}, key(6)).x, trained, atol=1e-5, rtol=0)
    assert plain.describe() == "centre 40 px, lightness, normalise"
    again = one_view(view_of(plain))  # what a probe or fine-tuning trains on
    seen = again.render(pictures(), again.plan(key(6)), key(6)).x
    assert torch.equal(seen[:, 0], seen[:, 2])
    assert again.plain == plain


@pytest.mark.parametrize("greyscale", ["luma", "lightness"])
def test_luma_would_tell_the_hue_and_lightness_does_not(greyscale: str) -> None:
    """Twelve hues of one lightness, which varies a little: how much of what is seen does the hue explain?"""
    generator = torch.Generator().manual_seed(0)
    hue = torch.arange(12).repeat_interleave(40)
    light = 60 + 2 * torch.randn(480, generator=generator)
    angle = 2 * math.pi * hue / 12
    rgb = torch.stack(to_rgb(light, 30 * angle.cos(), 30 * angle.sin()))
    images = (rgb.T * 255).round().to(torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    if greyscale == "luma":  # the control
        seen = colour.luma(images.transpose(0, 1).float() / 255).mean((1, 2))
    else:
        views = coloured(View(size=8))
        seen = views.render(images, views.plan(key(480)), key(480)).x.mean((1, 2, 3))
    means = seen.view(12, 40).mean(1)
    explained = float(means.var() / seen.var())
    assert (explained > 0.3) if greyscale == "luma" else (explained < 0.1)


def test_no_border_is_ever_seen() -> None:
    views = coloured(View(size=16, scale=(0.47, 1.0)))
    white = views.render(torch.full((50, 3, 30, 40), 255, dtype=torch.uint8), views.plan(key(50)), key(50))
    assert float(white.x.min()) > 0.999
    assert float(white.ab.abs().max()) < 0.05


def test_images_without_colour_are_refused() -> None:
    views = coloured(View(size=16))
    with pytest.raises(ValueError, match="images of 1 channels have no colour"):
        views.render(pictures()[:, :1], views.plan(key(6)), key(6))
