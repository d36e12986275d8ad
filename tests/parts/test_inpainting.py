"""Parts of context encoders: channels stay apart, the code's layers and sizes, and their start."""

import pytest
import torch
from torch import nn

from selfsight.parts.inpainting import ChannelwiseLinear, Discriminator, Painter


def test_a_channel_sees_all_of_its_places_and_no_other_channel() -> None:
    layer, x = ChannelwiseLinear(4, 6), torch.randn(2, 4, 2, 3)
    y = layer(x)
    assert y.shape == x.shape
    for b in range(2):
        for c in range(4):
            torch.testing.assert_close(y[b, c].flatten(), layer.weight[c].T @ x[b, c].flatten())
    other = x.clone()
    other[:, 2] += 1
    changed = (layer(other) != y).flatten(2).all(dim=2).all(dim=0)
    assert changed.tolist() == [False, False, True, False]


def test_the_papers_layer_has_m_n_to_the_fourth_weights() -> None:
    """256 channels of 6 x 6 places."""
    assert sum(p.numel() for p in ChannelwiseLinear(256, 36).parameters()) == 331_776


def up(painter: nn.Module) -> list[tuple[int, int]]:
    return [
        (m.in_channels, m.out_channels)
        for m in painter.modules()
        if isinstance(m, nn.ConvTranspose2d) and m.stride == (2, 2)
    ]


def test_the_codes_decoders() -> None:
    """train.lua: 512-256-128-64-3 for 64 of 128 pixels; train_random.lua: one layer of 64 more for all of them."""
    centre = Painter(512, 4, 3, 64, bottleneck=4000)
    assert up(centre) == [(512, 256), (256, 128), (128, 64), (64, 3)]
    assert (centre[0].in_channels, centre[0].out_channels, centre[0].kernel_size) == (512, 4000, (4, 4))
    assert isinstance(centre[2], nn.LeakyReLU)
    assert (centre[3].in_channels, centre[3].out_channels, centre[3].kernel_size) == (4000, 512, (4, 4))
    assert up(Painter(512, 4, 3, 128)) == [(512, 256), (256, 128), (128, 64), (64, 64), (64, 3)]
    convolutions = [m for m in centre if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [m.bias for m in convolutions] == [None] * 6
    assert isinstance(centre[-1], nn.Tanh)


def test_a_wide_map_is_narrowed_before_the_bottleneck() -> None:
    """A ResNet-50's 2048 channels of 7 x 7 places would take half a billion weights; so it is the code's 512."""
    with torch.device("meta"):
        painter, code = Painter(2048, 7, 3, 112, bottleneck=4000), Painter(2048, 4, 3, 64, bottleneck=4000)
    assert sum(layer.weight.numel() for layer in painter if hasattr(layer, "weight")) < 205e6
    assert sum(layer.weight.numel() for layer in code if hasattr(layer, "weight")) < 70e6
    assert [type(layer).__name__ for layer in list(painter)[:4]] == ["Conv2d", "BatchNorm2d", "LeakyReLU", "Conv2d"]
    assert (painter[0].out_channels, painter[3].in_channels, painter[3].out_channels) == (512, 512, 4000)


@pytest.mark.parametrize(
    ("grid", "size", "bottleneck"), [(4, 16, 0), (4, 32, 10), (2, 16, 3), (7, 112, 0), (3, 40, 0), (8, 8, 0)]
)
def test_pictures_have_the_size_that_is_asked_for(grid: int, size: int, bottleneck: int) -> None:
    painter = Painter(6, grid, 5, size, filters=2, bottleneck=bottleneck)
    picture = painter(torch.randn(2, 6, grid, grid))
    assert picture.shape == (2, 5, size, size)
    assert float(picture.detach().abs().max()) < 1


def test_every_place_of_the_map_is_seen_by_every_pixel() -> None:
    """Without the channel-wise layer a convolution would see its neighbourhood alone."""
    painter = Painter(3, 4, 1, 16, filters=2).double().eval()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(painter(x)[0, 0, 0, 0], x)
    assert (grad != 0).flatten(2).any(dim=1).all()


def test_the_codes_discriminators() -> None:
    def widths(size: int) -> list[int]:
        return [m.out_channels for m in Discriminator(3, size).modules() if isinstance(m, nn.Conv2d)]

    assert widths(64) == [64, 128, 256, 512, 1]
    assert widths(128) == [64, 64, 128, 256, 512, 1]
    assert widths(112) == [64, 128, 256, 512, 1]
    assert widths(16) == [64, 128, 1]
    judge = Discriminator(3, 64)
    assert [type(m).__name__ for m in judge][:5] == ["Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU"]
    for size in (8, 20, 56, 100):
        assert Discriminator(2, size, filters=2)(torch.randn(3, 2, size, size)).shape == (3,)
    with pytest.raises(ValueError, match="at least 8 px, not 4"):
        Discriminator(3, 4)


def test_the_start_is_dcgans() -> None:
    torch.manual_seed(0)
    judge = Discriminator(3, 64)
    assert judge[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert judge[6].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert judge[6].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not judge[6].bias.any()
    assert ChannelwiseLinear(8, 100).weight.std().item() == pytest.approx(0.1, rel=0.02)
