r"""Contexts over a grid of patches that see the rows above and no row below, and what predicts from them.

Causality is in the structure: rows are visited in order, or shifted down before they are mixed. No weight is masked.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

Direction = Literal["down", "up", "right", "left"]
"""Where predictions lie, seen from their context: ``down`` predicts the rows below."""
DIRECTIONS: tuple[Direction, ...] = ("down", "up", "right", "left")


def turned(z: Float[Tensor, "b h w d"], direction: Direction) -> Float[Tensor, "b y x d"]:
    """The grid with its rows in the order in which ``direction`` reads them.

    >>> z = torch.arange(4).view(1, 2, 2, 1).float()
    >>> turned(z, "up").flatten().tolist(), turned(z, "right").flatten().tolist(), turned(z, "left").flatten().tolist()
    ([2.0, 3.0, 0.0, 1.0], [0.0, 2.0, 1.0, 3.0], [1.0, 3.0, 0.0, 2.0])
    """
    grid = z.transpose(1, 2) if direction in ("right", "left") else z
    return grid.flip(1) if direction in ("up", "left") else grid


class RowGRU(nn.Module):
    r"""A gated recurrent unit whose state is a whole row, with 1x3 convolutions along it (after PixelRNN's row LSTM).

    :math:`c_r = \mathrm{GRU}(z_r, c_{r-1})`: the context at row ``r`` sees the rows up to its own.
    """

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Conv2d(inside, 3 * width, (1, 3), padding=(0, 1))
        self.state = nn.Conv1d(width, 3 * width, 3, padding=1)

    def forward(self, z: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w e"]:
        rows = self.input(z.permute(0, 3, 1, 2)).unbind(dim=2)
        state = torch.zeros_like(rows[0][:, : self.width])
        seen: list[Tensor] = []
        for row in rows:
            reset, update, new = row.chunk(3, dim=1)
            from_reset, from_update, from_new = self.state(state).chunk(3, dim=1)
            gate = torch.sigmoid(update + from_update)
            fresh = torch.tanh(new + torch.sigmoid(reset + from_reset) * from_new)
            state = gate * state + (1 - gate) * fresh
            seen.append(state)
        return torch.stack(seen, dim=2).permute(0, 2, 3, 1)


class MaskedConvolutions(nn.Module):
    """The masked convolutional network of CPC v2 (Hénaff et al., 2019, appendix A.2), after PixelCNN.

    Residual blocks, each a 1x1 convolution, a 1x3 along the row, a 2x1 over a row of zeros put on top (so that it sees
    its row and the one above), and a 1x1 back; one ReLU after the last. The context at row ``r`` sees the ``blocks``
    rows above it, its own, and ``blocks`` columns to each side.
    """

    def __init__(self, inside: int, *, hidden: int = 256, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_MaskedBlock(inside, hidden) for _ in range(blocks)))

    def forward(self, z: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        return torch.relu(self.blocks(z.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class _MaskedBlock(nn.Module):
    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inside, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
            nn.ZeroPad2d((0, 0, 1, 0)),
            nn.Conv2d(hidden, hidden, (2, 1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, inside, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Forecast(nn.Module):
    """All that reads a grid in one direction: a context, one predictor for each step ahead, a head for the targets."""

    def __init__(self, context: nn.Module, predictors: Iterable[nn.Module], target: nn.Module) -> None:
        super().__init__()
        self.context = context
        self.predictors = cast("Sequence[nn.Module]", nn.ModuleList(predictors))
        self.target = target
