"""Heads: the multi-layer perceptrons that projectors and predictors are."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


def mlp(
    *widths: int,
    bias: bool = True,
    norm: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
    out_bias: bool = True,
    out_norm: Literal["none", "affine", "scale", "plain"] = "none",
    init: Callable[[Tensor], object] | None = None,
) -> nn.Sequential:
    """A multi-layer perceptron of the given widths, first the input's and last the output's.

    Each hidden layer is linear (``bias``), batch norm (``norm``), ``activation``; the last is linear (``out_bias``) and
    ``out_norm``: no norm, batch norm with scale and shift (``affine``), with scale alone (``scale``, SimCLR), or with
    neither (``plain``, SimSiam). ``init`` fills each weight matrix in place and sets biases to zero; without it
    PyTorch's default stays.

    The heads of the papers, ``w`` being the encoder's width:

    - SimCLR: ``mlp(w, w, 128, bias=False, out_bias=False, out_norm="scale")``
    - BYOL: ``mlp(w, 4096, 256, out_bias=False)``
    - MoCo v1 and v2: ``mlp(w, 128)`` and ``mlp(w, w, 128, norm=False)``
    - Barlow Twins: ``mlp(w, 8192, 8192, 8192, bias=False, out_bias=False)``

    >>> [type(layer).__name__ for layer in mlp(8, 16, 4)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    if len(widths) < 2:
        raise ValueError(f"mlp got the widths {widths}; it needs those of the input and of the output")
    layers: list[nn.Module] = []
    for into, out in pairwise(widths[:-1]):
        layers.append(nn.Linear(into, out, bias=bias))
        if norm:
            layers.append(nn.BatchNorm1d(out))
        layers.append(activation())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=out_bias))
    if out_norm != "none":
        last = nn.BatchNorm1d(widths[-1], affine=out_norm != "plain")
        if out_norm == "scale":
            last.bias.requires_grad_(False)  # stays at zero, which keeps the state's keys those of any batch norm
        layers.append(last)
    for layer in layers:
        if init is not None and isinstance(layer, nn.Linear):
            init(layer.weight)
            if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  # torch's stub forgets None
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def fan_in_normal_(weight: Tensor) -> Tensor:
    """Truncated normal of standard deviation 1/√fan-in, cut at two of them: the default of BYOL's official code."""
    std = weight.shape[1] ** -0.5
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
