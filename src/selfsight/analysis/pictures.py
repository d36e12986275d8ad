"""DINO's figures: where the class token looks, head by head, and the patches' three strongest directions as colours."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from selfsight.report.grid import tiles_sheet

_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
"""From dark to bright by way of purple, red and orange."""
_SIDE = 96


def attention_sheet(x: Float[Tensor, "b c h w"], rows: Float[Tensor, "b heads n"]) -> Image.Image:
    """A row for each image: the image, then how much each head attends to each patch, the most the brightest."""
    side = round(rows.shape[-1] ** 0.5)
    maps = rows / rows.amax(-1, keepdim=True).clamp_min(1e-12)
    heats = [coloured(maps[:, head].unflatten(1, (side, side))) for head in range(rows.shape[1])]
    return _on_white([shown(x), *heats])


def patches_sheet(x: Float[Tensor, "b c h w"], patches: Float[Tensor, "b d y x"]) -> Image.Image:
    """Two images in a row, each beside its patches: the three strongest directions of all as red, green and blue."""
    return _on_white([shown(x), principal(patches)], across=2)


def principal(patches: Float[Tensor, "b d y x"]) -> UInt8[Tensor, "b 3 y x"]:
    """The three principal components over all images' patches, each stretched from its 1st to its 99th percentile.

    A component's sign is arbitrary; here its largest deviation is positive, so that two calls agree.
    """
    b, _, height, width = patches.shape
    rows = patches.permute(0, 2, 3, 1).flatten(0, 2).double()
    rows = rows - rows.mean(0)
    scores = rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -3:].flip(1)
    scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
    scores = scores * scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()
    low, high = (torch.quantile(scores, q, dim=0) for q in (0.01, 0.99))
    stretched = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (255 * stretched).round().byte().view(b, height, width, 3).permute(0, 3, 1, 2)


def coloured(maps: Float[Tensor, "b y x"]) -> UInt8[Tensor, "b 3 y x"]:
    """Values from 0 to 1 as heat."""
    at = np.linspace(0, 1, len(_HEAT))
    values = maps.double().numpy()
    return torch.from_numpy(np.stack([np.interp(values, at, _HEAT[:, k]) for k in range(3)], axis=1).round()).byte()


def shown(x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """The network's input for the eye, stretched from its least to its greatest value in each image."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (255 * (x - low) / (high - low).clamp_min(1e-12)).round().byte()


def _on_white(stacks: list[UInt8[Tensor, "b c _ _"]], across: int = 1) -> Image.Image:
    large = [interpolate(stack.float(), size=_SIDE, mode="nearest").byte() for stack in stacks]
    sheet = tiles_sheet(large, _SIDE, across=across)
    paper = Image.new("RGB", sheet.size, "white")
    paper.paste(sheet, mask=sheet)
    return paper
