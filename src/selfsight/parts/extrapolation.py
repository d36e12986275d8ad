"""Parts of QB-Heat: a quarter's features carried on to the other three by linear maps, and the decoder of the whole.

Quarters count in row-major order, so that the bits of their numbers say right (1) and below (2), and a step across or
down changes one bit.
"""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import conv2d

from selfsight.parts.decoders import xavier_
from selfsight.parts.positions import sincos_2d


class Extrapolation(nn.Module):
    r"""The features of the whole image from those of one quarter: :math:`z(x + w, y) = (I + P) z(x, y)`.

    Each place of the quarter predicts the place half an image further. There is a matrix for each direction, to the
    right, to the left, down and up, none with a bias; all begin at zero, so that the quarter is first repeated. The
    quarter opposite is reached across and down: the mean of both orders, which need not commute. With ``own_diagonal``
    it has four matrices of its own instead.
    """

    def __init__(self, width: int, *, own_diagonal: bool = False) -> None:
        super().__init__()
        self.across = nn.Parameter(torch.zeros(2, width, width))
        self.down = nn.Parameter(torch.zeros(2, width, width))
        self.diagonal = nn.Parameter(torch.zeros(4, width, width)) if own_diagonal else None

    def forward(self, z: Float[Tensor, "b d h w"], quarter: Int[Tensor, " b"]) -> Float[Tensor, "b d h2 w2"]:
        """The map of the whole image, of twice the height and width, with ``z`` itself in its ``quarter``."""
        right, below = quarter % 2, quarter // 2
        beside, under = shift(z, self.across, right), shift(z, self.down, below)
        if self.diagonal is None:
            opposite = (shift(beside, self.down, below) + shift(under, self.across, right)) / 2
        else:
            opposite = shift(z, self.diagonal, quarter)
        return assemble([z, beside, under, opposite], quarter)


def shift(
    z: Float[Tensor, "b d h w"], matrices: Float[Tensor, "k d d"], which: Int[Tensor, " b"]
) -> Float[Tensor, "b d h w"]:
    """``z + M z`` at every place, with the matrix that ``which`` chooses for each sample."""
    every = conv2d(z, matrices.flatten(0, 1)[..., None, None])
    every = every.reshape(len(z), len(matrices), *z.shape[1:])
    return z + every[torch.arange(len(z), device=z.device), which]


def assemble(parts: list[Tensor], quarter: Int[Tensor, " b"]) -> Float[Tensor, "b d h2 w2"]:
    """The whole map of its four parts: the seen quarter, what lies beside it, under or over it, and opposite.

    >>> parts = [torch.full((1, 1, 1, 1), float(k)) for k in range(4)]
    >>> assemble(parts, torch.tensor([2]))[0, 0]  # the lower left was seen
    tensor([[2., 3.],
            [0., 1.]])
    """
    stacked = torch.stack(parts, dim=1)
    b, _, d, h, w = stacked.shape
    source = torch.arange(4, device=quarter.device) ^ quarter[:, None]  # which part belongs into each quarter
    placed = stacked[torch.arange(b, device=quarter.device)[:, None], source]
    return placed.reshape(b, 2, 2, d, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, d, 2 * h, 2 * w)


class MapDecoder(nn.Module):
    """From a feature map to a vector for each of its places: a linear layer, positions, a few transformer blocks.

    ``places`` is the grid (rows, columns), ``outputs`` the length of one place's vector.
    """

    positions: Tensor

    def __init__(
        self, encoded: int, outputs: int, places: tuple[int, int], *, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a decoder of width {width} cannot have {heads} heads; choose a divisor")
        norm = cast(type[nn.LayerNorm], partial(nn.LayerNorm, eps=1e-6))
        self.embed = nn.Linear(encoded, width)
        self.register_buffer("positions", sincos_2d(width, *places)[None], persistent=False)
        self.blocks = nn.Sequential(*[Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(width)
        self.predict = nn.Linear(width, outputs)
        xavier_(self)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n p"]:
        """Vectors of all places, in row-major order."""
        x = self.embed(z.flatten(2).transpose(1, 2)) + self.positions
        return self.predict(self.norm(self.blocks(x)))
