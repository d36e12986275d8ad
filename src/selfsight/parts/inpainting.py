"""Parts of context encoders: the channel-wise layer, the decoder that paints, and the discriminator that judges.

Pathak et al., 2016, arXiv 1604.07379; sizes and start are the official code's (pathak22/context-encoder): 4x4
convolutions of stride 2, weights N(0, 0.02), scales of batch norm N(1, 0.02), and no bias, which the code sets to zero
before every step.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate


class ChannelwiseLinear(nn.Module):
    """A linear layer over the places of each channel, with a matrix for each: ``m n²`` weights for ``n`` places.

    A fully connected layer would have ``m² n²``. It lets every place see every other; channels meet in the 1x1
    convolution that follows. It begins with weights N(0, 1 / n), which keep the scale.
    """

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, places, places))
        nn.init.normal_(self.weight, std=places**-0.5)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = torch.bmm(x.flatten(2).transpose(0, 1), self.weight)
        return y.transpose(0, 1).reshape(x.shape)


class Painter(nn.Sequential):
    """From a feature map to a picture in [-1, 1], twice as large with each transposed convolution.

    The places of the map meet in a channel-wise layer and a 1x1 convolution, or, with a ``bottleneck``, in a fully
    connected layer of that width. Before that one a map of more than ``8 * filters`` channels, those of the official
    code's encoder, is brought to so many, since each costs ``bottleneck`` weights a place. Then there are
    ``8 * filters`` channels, half as many after each layer down to ``filters``. What comes out larger than
    ``size`` is resized.

    Args:
        inside: channels of the map.
        grid: places along each axis of it.
        channels: of the picture.
        size: side of the picture in pixels.
        filters: of the layer before the last. Default: the official code's.
        bottleneck: width of the fully connected layer, 0 for the channel-wise one.
    """

    def __init__(
        self, inside: int, grid: int, channels: int, size: int, *, filters: int = 64, bottleneck: int = 0
    ) -> None:
        wide = 8 * filters
        if bottleneck:
            layers: list[nn.Module] = []
            if inside > wide:
                layers += [
                    nn.Conv2d(inside, wide, 1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
            layers += [
                nn.Conv2d(min(inside, wide), bottleneck, grid, bias=False),
                nn.BatchNorm2d(bottleneck),
                nn.LeakyReLU(0.2, inplace=True),
                nn.ConvTranspose2d(bottleneck, wide, grid, bias=False),
            ]
        else:
            layers = [ChannelwiseLinear(inside, grid * grid), nn.Conv2d(inside, wide, 1, bias=False)]
        doublings = max(1, math.ceil(math.log2(size / grid)))
        for k in range(1, doublings + 1):
            narrow = max(wide // 2, filters) if k < doublings else channels
            layers += [nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
            layers.append(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False))
            wide = narrow
        super().__init__(*layers, nn.Tanh(), *([Resize(size)] if grid * 2**doublings != size else []))
        normal_start_(self)


class Resize(nn.Module):
    """Pictures resized to ``size`` pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c s s"]:
        return interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


class Discriminator(nn.Sequential):
    """Says of pictures of ``size`` pixels how real they look, as a logit: halved until 4 to 7 places are left.

    ``filters`` are those of the first layer; they double up to eight times as many.
    """

    def __init__(self, channels: int, size: int, *, filters: int = 64) -> None:
        if size < 8:
            raise ValueError(f"a discriminator takes pictures of at least 8 px, not {size}")
        halvings = int(math.log2(size / 4))
        widths = [filters * 2 ** max(0, k - max(0, halvings - 4)) for k in range(halvings)]
        layers: list[nn.Module] = []
        for k, width in enumerate(widths):
            layers.append(nn.Conv2d(widths[k - 1] if k else channels, width, 4, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(width)] if k else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, size // 2**halvings, bias=False), nn.Flatten(0))
        normal_start_(self)


def normal_start_(module: nn.Module) -> None:
    """DCGAN's start, in place: convolutions N(0, 0.02), scales of batch norm N(1, 0.02), shifts 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
