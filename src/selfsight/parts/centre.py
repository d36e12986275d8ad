"""The running mean of a teacher's outputs, which self-distillation subtracts so that no output wins everywhere."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.distributed import mean


class Centre(nn.Module):
    r"""DINO's centre, :math:`c \leftarrow m c + (1 - m) \overline{t}`: ``value``, which begins at zero.

    It moves once for each update, by the mean over all of its micro-batches and processes: so accumulated gradients
    equal the large batch. ``momentum`` is DINO's and iBOT's 0.9 by default.

    >>> centre = Centre(2)
    >>> centre.note_(torch.tensor([1.0, 3.0]))
    >>> centre.note_(torch.tensor([1.0, 1.0]))
    >>> centre.move_()
    >>> centre.value
    tensor([0.1000, 0.2000])
    """

    value: Tensor
    next_sum: Tensor
    next_count: Tensor

    def __init__(self, outputs: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(outputs))
        self.register_buffer("next_sum", torch.zeros(outputs))  # of the means of this update's micro-batches
        self.register_buffer("next_count", torch.zeros(()))

    @torch.no_grad()
    def note_(self, seen: Float[Tensor, " k"]) -> None:
        """Adds the mean of this process's outputs, unless it is not finite: an overflow would stay for ever."""
        seen = mean(seen)
        self.next_sum.add_(torch.where(seen.isfinite(), seen, self.value))
        self.next_count.add_(1)

    @torch.no_grad()
    def move_(self) -> None:
        """Moves the centre after an update."""
        self.value.lerp_(self.next_sum / self.next_count, 1 - self.momentum)
        self.next_sum.zero_()
        self.next_count.zero_()
