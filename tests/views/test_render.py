"""A whole view against torchvision's functions, called one by one with the parameters that were drawn."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF  # noqa: N812

from selfsight import keyed
from selfsight.views import render as rendering
from selfsight.views.render import render, sizes, together
from selfsight.views.view import BRIGHTNESS, CONTRAST, DRAWS, HUE, SATURATION, Blur, Jitter, Solarise, View, resolve

THEIRS = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}
EVERYTHING = View(
    size=24,
    interpolation="bicubic",
    jitter=Jitter(0.8, 0.8, 0.8, 0.2, p=0.8),
    grey=0.3,
    blur=Blur(0.5),
    solarise=Solarise(0.3),
)


def plan(n: int, v: int = 0) -> Tensor:
    return keyed.uniforms(keyed.Key(5, torch.zeros(n, dtype=torch.long), torch.arange(n)), f"view{v}", DRAWS)


def by_torchvision(image: Tensor, view: View, u: Tensor) -> Tensor:
    """One view of one image, in float64."""
    box, drawn = resolve(view, u, *image.shape[1:])
    mode = InterpolationMode(view.interpolation)
    corner = [int(side) for side in box[:4]]
    x = TF.resized_crop(image.double() / 255, *corner, [view.size] * 2, mode, antialias=True).clamp(0, 1)
    x = TF.hflip(x) if box.flip.item() else x
    for step in view.order:
        if step == "jitter" and drawn.order[0, 0] >= 0:
            for operation in drawn.order[0].tolist():
                x = THEIRS[operation](x, drawn.factors[0, operation].item())
        elif step == "grey" and drawn.grey.item():
            x = TF.rgb_to_grayscale(x, 3)
        elif step == "blur" and drawn.blur.item():
            assert view.blur is not None
            taps = 2 * min(view.blur.radius, view.size - 1) + 1
            x = TF.gaussian_blur(x, [taps, taps], [drawn.sigma.item()] * 2)
        elif step == "solarise" and drawn.solarise.item():
            assert view.solarise is not None
            x = TF.solarize(x, view.solarise.threshold)
    return TF.normalize(x, *view.normalise) if view.normalise else x


@pytest.mark.parametrize("order", [("jitter", "grey", "blur", "solarise"), ("grey", "jitter", "solarise", "blur")])
@pytest.mark.parametrize("large", [128**2, 1])
def test_a_whole_view_is_torchvisions(
    pictures: Tensor, order: tuple, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_LARGE", large)
    images = pictures[:, :, :48, :48]
    images = images[torch.arange(60) % len(images)]
    view = View(**{**vars(EVERYTHING), "order": order})
    u = plan(len(images))
    (ours,) = render(images, [view], [u])
    gaps = torch.stack([(ours[k] - by_torchvision(images[k], view, u[k : k + 1])).abs().amax() for k in range(60)])
    # In float32 a value a hair below the solarise threshold may stay, or go to one hair less than 1/255 beside it.
    assert (gaps < 1e-3).float().mean() > 0.9
    assert gaps.max() < 0.05


def test_views_rendered_together_are_those_rendered_alone() -> None:
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    first = EVERYTHING
    views = [
        first,
        View(**{**vars(first), "blur": None, "solarise": None, "scale": (0.5, 1.0)}),
        View(size=16, jitter=Jitter(0.4, 0.4, 0.4, 0.4)),
        View(**{**vars(first), "blur": Blur(1.0, kernel=3)}),
        View(size=16, jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), grey=0.5),
    ]
    assert together(views) == [[0, 1], [2, 4], [3]]
    assert sizes(views) == [24, 16]
    plans = [plan(50, v) for v in range(5)]
    for x, view, u in zip(render(images, views, plans), views, plans, strict=True):
        torch.testing.assert_close(x, render(images, [view], [u])[0], atol=1e-5, rtol=0)


def test_an_image_looks_the_same_in_any_batch_and_any_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (90, 3, 32, 32), dtype=torch.uint8)
    u = plan(90)
    (x,) = render(images, [EVERYTHING], [u])
    some = torch.tensor([71, 3, 44, 12, 9])
    torch.testing.assert_close(render(images[some], [EVERYTHING], [u[some]])[0], x[some], atol=1e-5, rtol=0)
    monkeypatch.setattr(rendering, "_PIECE", 7 * 3 * 24 * 24)
    torch.testing.assert_close(render(images, [EVERYTHING], [u])[0], x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("cut", [False, True])
def test_large_views_plane_by_plane_are_the_same(channels: int, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (40, 2, channels, 24, 24) if cut else (40, channels, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    given = [images] if cut else images
    views, plans = [EVERYTHING, View(**{**vars(EVERYTHING), "normalise": None})], [plan(40), plan(40, 1)]
    expected = render(given, views, plans)
    monkeypatch.setattr(rendering, "_LARGE", 1)
    for ours, theirs in zip(render(given, views, plans), expected, strict=True):
        gaps = (ours - theirs).abs()  # at the threshold of solarise a hair turns a pixel
        assert (gaps > 1e-4).float().mean() < 1e-4


def test_rendering_ignores_autocast_and_gradients() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    (expected,) = render(images, [EVERYTHING], [plan(8)])
    with torch.autocast("cpu", torch.bfloat16):
        (x,) = render(images, [EVERYTHING], [plan(8)])
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert torch.equal(x, expected)
