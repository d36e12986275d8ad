"""Stochastic depth (Huang et al., 2016, arXiv 1603.09382) of an encoder that is there already."""

import torch
from timm.layers.drop import DropPath
from torch import nn

from selfsight.errors import UserError

_NAMES = ("drop_path", "drop_path1", "drop_path2")


def set_drop_path_(encoder: nn.Module, rate: float) -> None:
    """Drops each image's residual path with probability 0 in the first block, ``rate`` in the last, evenly between.

    That is timm's rule, whatever the encoder was built with: a Swin of timm's drops 0.1 unless it is told otherwise.
    Raises ``UserError`` where a rate is asked of an encoder whose blocks drop nothing, timm's ResNets among them.

    >>> from selfsight.encoders.build import build_encoder
    >>> vit = build_encoder("vit_tiny_patch16_224", image_size=32, depth=3)
    >>> set_drop_path_(vit, 0.2)
    >>> vit.model.blocks[0].drop_path1, vit.model.blocks[1].drop_path2, vit.model.blocks[2].drop_path1
    (Identity(), DropPath(drop_prob=0.100), DropPath(drop_prob=0.200))
    """
    blocks = [module for module in encoder.modules() if any(name in _children(module) for name in _NAMES)]
    if rate and not blocks:
        name = getattr(encoder, "name", type(encoder).__name__)
        raise UserError(f"--drop-path is {rate:g}, but {name} has no blocks that could be dropped; use --drop-path 0")
    for block, share in zip(blocks, torch.linspace(0, rate, max(len(blocks), 1)).tolist(), strict=False):
        for name in _NAMES:
            if name in _children(block):
                setattr(block, name, DropPath(share) if share else nn.Identity())


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
