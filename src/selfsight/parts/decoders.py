"""Decoders of masked image modelling."""

import math
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfsight.parts.positions import sincos_2d


class MaskedDecoder(nn.Module):
    """MAE's decoder: visible tokens and one shared mask token in their places, a few blocks, one vector for each patch.

    Its width and depth do not depend on the encoder's. Nothing of it is kept after training. Defaults: MAE (8 blocks of
    512, 16 heads). ``patches`` is the grid (rows, columns), ``outputs`` the length of one patch's vector.
    """

    positions: Tensor

    def __init__(
        self, encoded: int, outputs: int, patches: tuple[int, int], *, width: int = 512, depth: int = 8, heads: int = 16
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a decoder of width {width} cannot have {heads} heads; choose a divisor")
        norm = cast(type[nn.LayerNorm], partial(nn.LayerNorm, eps=1e-6))
        self.embed = nn.Linear(encoded, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_2d(width, *patches)[None], persistent=False)
        self.blocks = nn.Sequential(*[Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(width)
        self.predict: nn.Module = nn.Linear(width, outputs)
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, token: Float[Tensor, "b d"] | None, visible_tokens: Float[Tensor, "b k d"], visible: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b n p"]:
        """Vectors of all patches from the class token, if there is one, the visible patches' tokens and positions."""
        b, n = len(visible), self.positions.shape[1]
        seen = self.embed(visible_tokens)
        everywhere = self.mask_token.to(seen.dtype).expand(b, n, -1)
        patches = everywhere.scatter(1, visible[..., None].long().expand_as(seen), seen) + self.positions
        if token is None:
            return self.predict(self.norm(self.blocks(patches)))
        x = torch.cat([self.embed(token)[:, None], patches], dim=1)  # the class token has no position
        return self.predict(self.norm(self.blocks(x)))[:, 1:]


def xavier_(module: nn.Module) -> None:
    """MAE's start: Xavier-uniform for linear layers and, seen as a matrix, for patch embeddings; norms (1, 0).

    Biases are zero. A query-key-value layer is one matrix here, as it is in MAE's code.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv2d):
            fan_in, fan_out = layer.weight[0].numel(), layer.weight.shape[0]
            nn.init.uniform_(layer.weight, -math.sqrt(6 / (fan_in + fan_out)), math.sqrt(6 / (fan_in + fan_out)))
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.LayerNorm) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
