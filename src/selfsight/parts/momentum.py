"""Momentum targets: copies of a network that follow it slowly and get no gradient."""

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false
# torch._foreach_* is what torch's own moving averages are built of

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M")
"""A module. An encoder is known by its protocol, so modules arrive here under other types too."""


def target_of(online: M) -> M:
    """A deep copy of ``online``, buffers included, whose parameters ask for no gradient.

    >>> target = target_of(nn.Linear(2, 2))
    >>> target.weight.requires_grad
    False
    """
    target = copy.deepcopy(online)
    _module(target).requires_grad_(False)
    return target


@torch.no_grad()
def ema_(target: M, online: M, m: float) -> None:
    r"""Moves the parameters of ``target`` towards those of ``online``: :math:`\xi \leftarrow m \xi + (1 - m) \theta`.

    Parameters only: the target's batch-norm statistics come from its own forward passes (BYOL, MoCo, DINO). It computes
    in the parameters' type, which must be float32 or wider: at ``m = 0.9995`` a step is below bfloat16's resolution.

    >>> online, target = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> ema_(target, online, 0.0)
    >>> bool(target.weight == online.weight)
    True
    """
    pairs = list(zip(_module(target).parameters(), _module(online).parameters(), strict=True))
    torch._foreach_lerp_([t for t, _ in pairs], [o for _, o in pairs], 1 - m)


def without_noise_(target: object) -> None:
    """Switches off dropout and drop path, whatever the mode: a teacher's targets carry no noise (DINO, iBOT)."""
    for module in _module(target).modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def _module(x: object) -> nn.Module:
    if not isinstance(x, nn.Module):
        raise TypeError(f"a momentum target needs an nn.Module, not {type(x).__name__}")
    return x
