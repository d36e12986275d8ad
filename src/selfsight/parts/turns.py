"""Quarter turns of a batch, where it lies."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def turn(x: Float[Tensor, "b c s s"], turns: Int[Tensor, "b k"]) -> Float[Tensor, "n c s s"]:
    """Each image turned counter-clockwise by so many quarters, bit for bit: first all by their first turn, and so on.

    No number is read from the device, so nothing waits for it.

    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> turn(x, torch.tensor([[0, 1]]))[1, 0]
    tensor([[1., 3.],
            [0., 2.]])
    """
    four = torch.stack([torch.rot90(x, quarters, (2, 3)) for quarters in range(4)])
    return four[turns.T, torch.arange(len(x), device=x.device)].flatten(0, 1)
