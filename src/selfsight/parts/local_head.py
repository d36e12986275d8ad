"""AMDIM's head of a feature map: it maps every place by itself, and begins near the identity."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LocalHead(nn.Module):
    """Two 1x1 convolutions beside a linear shortcut, then batch norm (Bachman et al., 2019; their official code).

    The second convolution begins at zero. The shortcut begins as the identity plus U(-0.01, 0.01), where the width does
    not shrink. Its bias in the official code is left out: batch norm takes it away again.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        nn.init.zeros_(self.conv2.weight)
        if outside >= inside:
            nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
            with torch.no_grad():
                self.shortcut.weight[:inside, :, 0, 0].fill_diagonal_(1.0)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e h w"]:
        return self.norm(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))
