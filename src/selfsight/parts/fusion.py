"""Several stages' features in one: what a decoder gets that needs fine places as well as meaning."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class StageFusion(nn.Module):
    """ConvMAE's multi-scale fusion: earlier stages' maps brought to the last one's grid and width, summed, normalised.

    ``widths`` are the maps' channels, ``ratios`` how many of their places make one of the last stage's along each axis.
    Kernel and stride are equal, so that a place reads nothing beside its own.
    """

    def __init__(self, widths: Sequence[int], width: int, ratios: Sequence[int] = (4, 2)) -> None:
        super().__init__()
        self.bring = nn.ModuleList(
            [nn.Conv2d(own, width, ratio, stride=ratio) for own, ratio in zip(widths, ratios, strict=True)]
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self, tokens: Float[Tensor, "b k d"], maps: Sequence[Float[Tensor, "b _ _ _"]], visible: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """The visible places' tokens, with what the maps have there."""
        where = visible[..., None].long()
        for bring, stage in zip(self.bring, maps, strict=True):
            tokens = tokens + torch.take_along_dim(bring(stage).flatten(2).transpose(1, 2), where, 1)
        return self.norm(tokens)
