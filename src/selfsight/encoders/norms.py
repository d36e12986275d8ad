"""Encoders without batch norm, for methods in which the samples of a batch must not see each other."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

Norm = Literal["layer", "none"]


class _Followed(nn.Module):
    """What timm's ``BatchNormAct2d`` does after its norm: drop, then activate."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.drop, self.act = (getattr(norm, part, None) or nn.Identity() for part in ("drop", "act"))

    def follow(self, x: Tensor) -> Tensor:
        """What comes after the norm."""
        return self.act(self.drop(x))


class LayerNorm(_Followed):
    """Normalises each sample over its channels and places, with scale and shift by channel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.follow(nn.functional.group_norm(x, 1, self.weight, self.bias, self.eps))


class Affine(_Followed):
    """Scale and shift by channel alone: a network without norm that begins as one with norm does, residual branches
    at zero included (timm's ``zero_init_last``)."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.follow(torch.addcmul(self.bias.to(x.dtype).view(shape), x, self.weight.to(x.dtype).view(shape)))


def replace_batch_norms(model: nn.Module, norm: Norm) -> nn.Module:
    """Puts layer norm, or scale and shift alone, in the place of each batch norm, in place; returns ``model``.

    Scales and shifts stay the same parameters under the same names; running statistics go. A model without batch norm
    stays as it is.

    >>> model = replace_batch_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "layer")
    >>> list(model.state_dict())
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    kind: Any = {"layer": LayerNorm, "none": Affine}[norm]
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm) and child.affine:
            setattr(model, name, kind(child))
        else:
            replace_batch_norms(child, norm)
    return model
