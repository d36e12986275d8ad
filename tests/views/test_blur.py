"""Blur against torchvision."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF  # noqa: N812

from selfsight.views import blur


def planes(images: Tensor) -> Tensor:
    return (images.float() / 255).transpose(0, 1).contiguous()


@pytest.mark.parametrize("radius", [1, 4, 11])
def test_blur_has_torchvisions_pixels(pictures: Tensor, radius: int) -> None:
    side = min(200, *pictures.shape[2:])  # 200 px goes by blocks
    images = pictures[:8, :, :side, :side]
    sigma = torch.linspace(0.1, 2, 8)[-len(images) :]
    ours = blur.blur_(planes(images), sigma, radius).transpose(0, 1)
    for k, s in enumerate(sigma.tolist()):
        theirs = TF.gaussian_blur(images[k], [2 * radius + 1] * 2, [s, s])
        gap = (ours[k] * 255 - theirs.float()).abs()
        assert gap.mean() <= 2
        assert gap.max() <= 8
        exact = TF.gaussian_blur(images[k].double() / 255, [2 * radius + 1] * 2, [s, s])
        torch.testing.assert_close(ours[k].double(), exact, atol=1e-5, rtol=0)


def test_a_kernel_wider_than_the_view_is_cut_to_it() -> None:
    x = torch.rand(3, 2, 6, 6)
    assert torch.equal(blur.blur_(x.clone(), torch.full((2,), 2.0), 8), blur.blur_(x.clone(), torch.full((2,), 2.0), 5))


def test_blur_keeps_a_constant_and_commutes_with_a_flip() -> None:
    sigma = torch.tensor([0.1, 0.9, 2.0])
    flat = torch.full((3, 3, 24, 24), 0.3)
    torch.testing.assert_close(blur.blur_(flat.clone(), sigma, 8), flat, atol=1e-6, rtol=0)
    x = torch.rand(3, 3, 24, 24)
    flipped = blur.blur_(x.flip(-1).contiguous(), sigma, 8).flip(-1)
    torch.testing.assert_close(blur.blur_(x.clone(), sigma, 8), flipped, atol=1e-6, rtol=0)
