"""BEiT's vision transformer, whose positions are relative: a bias of attention, one for all blocks or one for each."""

import math
from typing import Any

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone


class BeitEncoder(Backbone):
    """timm's ``Beit``, whose patches can be replaced before its blocks. It takes images of the size it was built for.

    SimMIM's transformer is this one with ``use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_fc_norm=False``.
    """

    model: Beit

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns d"]:
        """Embedded patches as a map, before any position."""
        return self.model.patch_embed(x).unflatten(1, self.model.patch_embed.grid_size)

    def encode(self, patches: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b d rows columns"]:
        """The last feature map that comes of such patches, after the last norm, wherever the model has it."""
        model = self.model
        first = model.cls_token.to(patches.dtype).expand(len(patches), -1, -1)
        x = torch.cat([first, patches.flatten(1, 2)], dim=1)
        x = model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)
        shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
        for block in model.blocks:
            x = block(x, shared_rel_pos_bias=shared)
        y = model.fc_norm(model.norm(x))[:, model.num_prefix_tokens :]
        return y.transpose(1, 2).unflatten(2, patches.shape[1:3])

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows columns"]:
        """The patch tokens as a map, after the last norm."""
        return self.encode(self.patches(x))


def begin_(encoder: object, std: float = 0.02) -> None:
    """The start of BEiT's and of SimMIM's transformer: normal weights cut off at one deviation, no biases, and residual
    branches rescaled by their depth. timm cuts nothing off and leaves the patches' weights to torch.
    """
    model: Any = getattr(encoder, "model", encoder)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            cut_normal_(layer.weight, std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for tokens in (model.cls_token, model.pos_embed):
        if tokens is not None:
            cut_normal_(tokens, std)
    with torch.no_grad():
        for depth, block in enumerate(model.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.mlp.fc2.weight.div_(math.sqrt(2 * depth))


def cut_normal_(x: Tensor, std: float = 0.02) -> None:
    """Normal numbers cut off at one deviation, which leaves 0.54 of it."""
    nn.init.trunc_normal_(x, std=std, a=-std, b=std)
