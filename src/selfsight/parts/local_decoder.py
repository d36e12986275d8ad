"""LocalMIM's decoders: one block each, then a head that makes the map of tokens finer or coarser."""

from jaxtyping import Float, Int
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from selfsight.parts.decoders import MaskedDecoder


class LocalDecoder(nn.Module):
    """A ``MaskedDecoder`` of one block whose map is rescaled by ``scale`` before the vectors are read off it.

    ``side`` is that of the encoder's map, ``outputs`` the length of a vector. Defaults: LocalMIM's for ViT.
    """

    def __init__(
        self, encoded: int, outputs: int, side: int, *, scale: float, width: int = 256, heads: int = 8, depth: int = 1
    ) -> None:
        super().__init__()
        self.side = side
        self.tokens = MaskedDecoder(encoded, width, (side, side), width=width, depth=depth, heads=heads)
        self.tokens.predict = nn.Identity()  # its tokens are what the head takes
        self.head = rescaled(width, outputs, scale)

    def forward(
        self, token: Float[Tensor, "b d"], seen: Float[Tensor, "b k d"], where: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b n outputs"]:
        """Vectors of all cells from the class token, the visible tokens and their positions."""
        y = self.tokens(token, seen, where)
        return self.head(y.mT.unflatten(2, (self.side, self.side))).flatten(2).mT


def rescaled(width: int, outputs: int, scale: float) -> nn.Sequential:
    """A map of vectors of length ``outputs``, ``scale`` times as fine as the map of tokens: 4, 2, 1 or 1/2.

    >>> [type(layer).__name__ for layer in rescaled(8, 27, 4)]
    ['ConvTranspose2d', 'LayerNorm2d', 'GELU', 'ConvTranspose2d', 'Conv2d']
    """
    half, quarter = width // 2, width // 4
    heads: dict[float, tuple[list[nn.Module], int]] = {
        4: (
            [
                nn.ConvTranspose2d(width, half, 2, 2),
                LayerNorm2d(half, eps=1e-6),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ],
            quarter,
        ),
        2: ([nn.ConvTranspose2d(width, half, 2, 2)], half),
        1: ([], width),
        0.5: ([nn.AvgPool2d(2)], width),
    }
    if scale not in heads:
        raise ValueError(f"a map cannot be made {scale:g} times as fine; there are heads for 4, 2, 1 and 0.5")
    layers, hidden = heads[scale]
    return nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1))
