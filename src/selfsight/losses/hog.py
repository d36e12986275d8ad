r"""Histograms of oriented gradients as a target of masked modelling (MaskFeat's idea, in LocalMIM's form).

Per colour :math:`c` of the normalised image, with Sobel's :math:`g_x` and :math:`g_y` (and a mirrored border),

.. math:: \rho = \sqrt{g_x^2 + g_y^2}, \qquad b = \lfloor B \, \operatorname{atan2}(g_x, g_y) / \pi \rfloor \bmod B,

          h_{c,k} = \sum_{u \in \text{cell}} \rho_u \, [b_u = k], \qquad y_c = h_c / \lVert h_c \rVert .

Opposite directions share a bin, so that contrast does not matter, and each pixel votes for one bin alone. There are
neither blocks of cells nor clipping, as Dalal's and Triggs's had them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad

from selfsight.losses.precision import full


@torch.no_grad()
def hog(
    x: Float[Tensor, "b c h w"], *, cell: int, bins: int = 9, offset: Float[Tensor, "2"] | None = None
) -> Float[Tensor, "b n d"]:
    """Each cell's histograms, ``d = c * bins`` long and one colour after the other, cells in row-major order.

    Each colour's part has unit norm, or is zero where the cell is even. ``offset`` is added to both gradients: the
    official code of the larger models leaves the Sobel filter's bias at its random start.

    >>> edge = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    >>> hog(edge, cell=4)[0, 0].nonzero().tolist()
    [[4]]
    """
    if x.shape[-2] % cell or x.shape[-1] % cell:
        raise ValueError(f"an image of {x.shape[-2]}x{x.shape[-1]} pixels has no whole number of cells of {cell}")
    framed = pad(full(x), (1, 1, 1, 1), mode="reflect")
    across, down = framed[..., :-2] - framed[..., 2:], framed[..., :-2, :] - framed[..., 2:, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    if offset is not None:
        gx, gy = gx + offset[0].to(gx), gy + offset[1].to(gy)
    which = torch.floor(torch.atan2(gx, gy) / math.pi * bins).long().remainder(bins)
    votes = gx.new_zeros(*gx.shape[:2], bins, *gx.shape[2:])
    votes.scatter_(2, which[:, :, None], torch.hypot(gx, gy)[:, :, None])
    pooled = avg_pool2d(votes.flatten(1, 2), cell)
    cells = pooled.reshape(len(x), -1, bins, *pooled.shape[2:])
    return normalize(cells, dim=2).flatten(1, 2).flatten(2).mT
