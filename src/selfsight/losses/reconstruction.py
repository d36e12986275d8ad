"""Reconstruction losses: images as patches, patches normalised one by one, and an error where patches were hidden.

A patch is a vector ordered by row in the patch, column in the patch, channel, the channel fastest.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfsight.losses.precision import full


def patchify(x: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n p"]:
    """Images as ``n = (h / patch)(w / patch)`` patches in row-major order, each a vector of ``patch * patch * c``.

    >>> patchify(torch.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 1]
    tensor([2., 3., 6., 7.])
    """
    b, c, h, w = x.shape
    if h % patch or w % patch:
        raise ValueError(f"an image of {h}x{w} pixels has no whole number of patches of {patch}")
    grid = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(patches: Float[Tensor, "b n p"], patch: int, height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Images of ``height`` by ``width`` from their patches: the inverse of ``patchify``."""
    b, n, p = patches.shape
    rows, columns = height // patch, width // patch
    if rows * columns != n or p % (patch * patch):
        raise ValueError(f"{n} patches of {p} numbers do not make an image of {height}x{width} at patch {patch}")
    grid = patches.reshape(b, rows, columns, patch, patch, p // (patch * patch))
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)


class NormalisedPatches(NamedTuple):
    """Patches with zero mean and unit variance each, and what undoes it: ``x * scale + mean``."""

    x: Float[Tensor, "b n p"]
    mean: Float[Tensor, "b n 1"]
    scale: Float[Tensor, "b n 1"]


def normalise_patches(patches: Float[Tensor, "b n p"], *, eps: float = 1e-6) -> NormalisedPatches:
    r"""Each patch by its own statistics, all channels jointly: :math:`(t - \mu) / \sqrt{s^2 + \epsilon}`.

    The variance is unbiased, as MAE's code has it: a zero prediction then has the error ``(p - 1) / p``.
    Default: MAE, ``models_mae.py`` (eps 1e-6).
    """
    patches = full(patches)
    mean = patches.mean(dim=-1, keepdim=True)
    scale = (patches.var(dim=-1, keepdim=True, correction=1) + eps).sqrt()
    return NormalisedPatches((patches - mean) / scale, mean, scale)


def masked_mse(
    prediction: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], masked: Int[Tensor, "b m"]
) -> Float[Tensor, ""]:
    r"""The mean squared error of the patches that were hidden, and of no other.

    .. math:: L = \frac1{bm} \sum_b \sum_{i \in \text{masked}_b} \frac1p \lVert \hat x_{b,i} - t_{b,i} \rVert^2

    Gradients of visible patches are exactly zero.

    >>> prediction, target = torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[3.0], [0.0]]])
    >>> float(masked_mse(prediction, target, torch.tensor([[0]])))
    4.0
    """
    if not masked.shape[1]:
        raise ValueError("nothing is masked, so there is nothing to predict; raise the mask ratio")
    where = masked[..., None]
    error = torch.take_along_dim(full(prediction), where, 1) - torch.take_along_dim(full(target), where, 1)
    return error.square().mean()


def weighted_mse(
    prediction: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], weight: Float[Tensor, "b n"]
) -> Float[Tensor, ""]:
    r"""The mean squared error of vectors that count by ``weight``, over all images together (LocalMIM).

    .. math:: L = \frac{\sum_{b,i} w_{b,i} \frac1p \lVert \hat x_{b,i} - t_{b,i} \rVert^2}{\sum_{b,i} w_{b,i}}

    >>> prediction, target = torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[3.0], [0.0]]])
    >>> float(weighted_mse(prediction, target, torch.tensor([[0.25, 0.75]])))
    19.75
    """
    error = (full(prediction) - full(target)).square().mean(dim=-1)
    return (error * weight.to(error)).sum() / weight.to(error).sum()


def masked_l1(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], hidden: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    r"""The mean absolute error of the pixels that were hidden, of all images together, and of no other (SimMIM).

    .. math:: L = \frac{\sum_{b,c,u} M_{b,u} \, |\hat x_{b,c,u} - x_{b,c,u}|}{C \, (\sum_{b,u} M_{b,u} + 10^{-5})}

    The small number is the official code's. Gradients of visible pixels are exactly zero.

    >>> x = torch.zeros(1, 3, 1, 2)
    >>> round(float(masked_l1(x + torch.tensor([2.0, 7.0]), x, torch.tensor([[[True, False]]]))), 3)
    2.0
    """
    wrong = (full(prediction) - full(target)).abs()
    error = torch.where(hidden[:, None], wrong, 0.0).sum()
    return error / (target.shape[1] * (hidden.sum().to(error.dtype) + 1e-5))
