"""Stochastic depth: in training whole residual branches are left out by lot, the later ones more often."""

from typing import Any, cast

import torch
from timm.layers.drop import DropPath
from torch import nn

_NAMES = ("drop_path", "drop_path1", "drop_path2")


def residual_blocks(network: nn.Module) -> list[Any]:
    """The blocks of a timm model, in their order, whose branches can be left out."""
    return [block for block in network.modules() if any(name in _slots(block) for name in _NAMES)]


def _slots(block: nn.Module) -> set[str]:
    """Where a block keeps its drop path: a module, or None in timm's ResNets."""
    return {name for name in _NAMES if name in dict(block.named_children()) or vars(block).get(name, 0) is None}


def stochastic_depth_(network: nn.Module, rate: float) -> int:
    """Block ``i`` of ``n`` leaves its branches out with probability ``rate * i / n`` (EfficientNet's code).

    Returns the number of blocks; where there is none, nothing changes.
    """
    blocks = residual_blocks(network)
    for place, block in enumerate(blocks):
        for name in _slots(block):
            setattr(block, name, DropPath(rate * place / len(blocks)))
    return len(blocks)


def drop_path_(encoder: Any, rate: float) -> None:
    """Gives a transformer's blocks drop path, growing linearly from 0 to ``rate``, unless it was built with its own.

    Raises ``ValueError`` where there are no such blocks.
    """
    blocks: Any = getattr(getattr(encoder, "model", None), "blocks", None)
    if not rate or any(isinstance(m, DropPath) for m in encoder.modules()):
        return
    if blocks is None or not all(hasattr(block, "drop_path1") and hasattr(block, "drop_path2") for block in blocks):
        raise ValueError("--drop-path is for vision transformers, whose blocks have residual branches; leave it out")
    shares = cast(list[float], torch.linspace(0, rate, len(blocks)).tolist())  # pyright: ignore[reportUnknownMemberType]
    for block, share in zip(blocks, shares, strict=True):
        if share:
            block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)
