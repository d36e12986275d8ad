"""What pixel-level methods are built of: a perceptron for each pixel of a feature map, and pixel propagation."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch types matrix products loosely

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from selfsight.losses.precision import full, no_autocast


def pixel_mlp(*widths: int) -> nn.Sequential:
    """A perceptron for every pixel: 1x1 convolutions with bias, between two of them batch norm and ReLU.

    PixPro's projector is ``pixel_mlp(w, 4096, 256)``, ``w`` being the encoder's width.

    >>> [type(layer).__name__ for layer in pixel_mlp(8, 16, 4)]
    ['Conv2d', 'BatchNorm2d', 'ReLU', 'Conv2d']
    """
    if len(widths) < 2:
        raise ValueError(f"pixel_mlp got the widths {widths}; it needs those of the input and of the output")
    layers: list[nn.Module] = []
    for into, out in pairwise(widths):
        layers += [nn.Conv2d(into, out, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])


class PixelPropagation(nn.Module):
    r"""PixPro's pixel propagation: each pixel becomes a mixture of those of its image that resemble it.

    .. math:: y_i = \sum_j \max(\cos(x_i, x_j), 0)^\gamma \, \bar g(x_j), \qquad \bar g = g / \lVert g \rVert

    ``transform`` is :math:`g`, ``gamma`` how sharply it chooses: 0 takes all pixels alike, a large one leaves each
    pixel to itself.

    >>> x = torch.randn(2, 8, 3, 3)
    >>> y = PixelPropagation(nn.Identity(), gamma=1e4)(x)
    >>> torch.allclose(normalize(y, dim=1), normalize(x, dim=1), atol=1e-4)
    True
    """

    def __init__(self, transform: nn.Module, *, gamma: float) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"the sharpness gamma must be at least 0, not {gamma:g}")
        self.transform = transform
        self.gamma = gamma

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        value = normalize(full(self.transform(x)), dim=1).flatten(2)
        with no_autocast(x):  # in float32: near 1 a cosine in bfloat16 is off by up to 0.004
            pixels = normalize(full(x), dim=1).flatten(2)
            share = (pixels.mT @ pixels).clamp_min(0)
            if self.gamma < 1:
                share = share + 1e-6  # where the power's slope is infinite
            y = value @ share.pow(self.gamma)  # symmetric: a pixel resembles another as the other resembles it
        return y.unflatten(2, x.shape[2:])


def as_rows(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
    """A feature map as rows of pixels in row-major order.

    >>> as_rows(torch.zeros(2, 8, 3, 5)).shape
    torch.Size([2, 15, 8])
    """
    return x.flatten(2).mT


@torch.no_grad()
def spread(x: Float[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    r"""The mean standard deviation of the coordinates of unit pixels: near :math:`1 / \sqrt d`, 0 after a collapse."""
    return normalize(full(x), dim=1).std(dim=(0, 2, 3), correction=0).mean()
