"""timm's BEiT as an encoder whose patches can be replaced before they get positions.

Its positions are biases of the attention, by how far two patches lie apart: one table for all blocks
(``use_shared_rel_pos_bias``), as BEiT is pretrained, or one for each block, as timm's fine-tuned models have it.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor

from selfsight.encoders.backbone import Backbone


class BeitEncoder(Backbone):
    """A BEiT; pooled it is the mean of its patch tokens, then the last norm, as timm has it."""

    model: Beit

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patches without positions, in row-major order, without class token."""
        return self.model.patch_embed(x)

    def encode(self, patches: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The blocks over ``patches``: class token and patch tokens, both after the last norm."""
        model: Any = self.model
        y = torch.cat([model.cls_token.to(patches.dtype).expand(len(patches), -1, -1), patches], dim=1)
        if model.pos_embed is not None:
            y = y + model.pos_embed
        y = model.pos_drop(y)
        bias = model.rel_pos_bias() if model.rel_pos_bias is not None else None
        for block in model.blocks:
            y = block(y, shared_rel_pos_bias=bias)
        y = model.fc_norm(model.norm(y))  # one of the two is the identity
        return y[:, 0], y[:, 1:]

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """The patch tokens as a map, after the last norm."""
        tokens = self.encode(self.patches(x))[1]
        return tokens.transpose(1, 2).unflatten(2, (x.shape[-2] // self.patch, -1))
