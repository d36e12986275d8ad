"""Colorization's bins of colour, and the decoder that says which: its paper's last block."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

_LEAST = (50, 20, 0, -20, -30, -40, -50, -50, -60, -70, -80, -80, -90, -100, -100, -110, -110, -110, -110, -90)
_GREATEST = (90, 90, 90, 90, 100, 100, 100, 100, 100, 100, 90, 90, 90, 90, 80, 80, 80, 70, 70, 0)
"""Of the b of the bins at a = -90, -80 ... 100."""


def bins() -> Float[Tensor, "q 2"]:
    """The centres of the 313 bins, ten apart, that screens can show: by a, then by b.

    Number and places are those of richzhang/colorization (``resources/pts_in_hull.npy``), as OpenCV's example lists
    them: each row of one a is without gaps, so its two ends are enough.

    >>> bins().shape, bins()[0], bins()[-1]
    (torch.Size([313, 2]), tensor([-90.,  50.]), tensor([100.,   0.]))
    """
    rows = zip(range(-90, 101, 10), _LEAST, _GREATEST, strict=True)
    return torch.tensor([(a, b) for a, low, high in rows for b in range(low, high + 1, 10)], dtype=torch.float32)


class ColourDecoder(nn.Module):
    """From an encoder's map to logits of the bins at one place for ``grid`` pixels of the image's.

    A transposed convolution of 4 x 4 doubles the map, as often as the encoder's ``stride`` needs to come down to
    ``grid``; two convolutions of 3 x 3 follow and one of 1 x 1, ReLUs between. In the paper's network the map has a
    stride of 8 and is doubled once.
    """

    def __init__(self, encoded: int, stride: int, outputs: int, *, width: int = 256, grid: int = 4) -> None:
        super().__init__()
        doublings = max(math.ceil(math.log2(stride / grid)), 0)
        layers: list[nn.Module] = []
        for k in range(doublings):
            layers += [nn.ConvTranspose2d(width if k else encoded, width, 4, 2, 1), nn.ReLU()]
        for k in range(2):
            layers += [nn.Conv2d(width if k or doublings else encoded, width, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.predict = nn.Conv2d(width, outputs, 1)

    def forward(self, features: Float[Tensor, "b d y x"], size: tuple[int, int]) -> Float[Tensor, "b q h w"]:
        """Logits at ``size`` places; where doubling does not lead there they are interpolated."""
        logits = self.predict(self.layers(features))
        if logits.shape[2:] == size:
            return logits
        return interpolate(logits, size, mode="bilinear", align_corners=False)
