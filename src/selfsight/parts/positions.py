"""Fixed positions of patches: sines and cosines of row and column."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_2d(width: int, rows: int, columns: int) -> Float[Tensor, "n d"]:
    r"""MAE's table for a grid of ``rows`` by ``columns``, in row-major order, float32.

    With :math:`\omega_k = 10000^{-k/(d/4)}` and :math:`e(c) = [\sin(c \omega_0), \ldots, \cos(c \omega_0), \ldots]`,
    the patch in row ``r`` and column ``q`` gets :math:`[e(q), e(r)]`: the column first, sines before cosines.

    >>> table = sincos_2d(8, rows=2, columns=3)
    >>> table.shape, table[1, :4].tolist()[:1] == [float(torch.tensor(1.0).sin())]
    (torch.Size([6, 8]), True)
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, got {width}")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(coordinate: Tensor) -> Tensor:
        angle = coordinate[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([encode(column.flatten()), encode(row.flatten())], dim=1).float()
