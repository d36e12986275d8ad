"""The small convolutional net of the demo, the ladder and the tests: made to learn within minutes on two CPU cores."""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions round a shortcut; the first halves the resolution where the width changes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        stride = 1 if inside == outside else 2
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = None
        if inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        same = x if self.shortcut is None else self.shortcut(F.avg_pool2d(x, 2, ceil_mode=True))
        return F.relu(y + same, inplace=True)


class SmallCNN(nn.Module):
    """A residual net with one block for each width after the first, that pools to ``b`` by its last width.

    The stem halves the resolution at once, which saves time on two CPU cores.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(*(Residual(a, b) for a, b in pairwise(widths)))
        self.feature_info = [{"module": name} for name in ("stem", *(f"blocks.{i}" for i in range(len(self.blocks))))]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean((2, 3))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Its layers from input to output, in timm's terms."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}
