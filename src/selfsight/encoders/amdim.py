"""AMDIM's residual encoder (Bachman et al., 2019, arXiv 1906.00910): no padding, so that features stay local.

Its maps of 7x7 and 5x5 places each see a part of the image, its last of 1x1 all of it. As in the official code
(Philip-Bachman/amdim-public, 8754ae1) there are three stacks, for images of 32, 64 and 128 px.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone
from selfsight.errors import UserError

SIZES = (32, 64, 128)
"""The images it takes: with others no layer would have 7x7, 5x5 and 1x1 places."""


class Shape(NamedTuple):
    """Width of the first layer, width of the pooled feature, layers in a block."""

    first: int
    width: int
    depth: int


NAMES = {
    "amdim_nano": Shape(16, 128, 1),  # the ladder's and the tests'
    "amdim_tiny": Shape(128, 1024, 3),  # the code's defaults
    "amdim_small": Shape(192, 1536, 8),  # its README's command for four GPUs
    "amdim_medium": Shape(256, 2048, 10),  # its published models
    "amdim_large": Shape(320, 2560, 10),
}


class Residual(nn.Module):
    """A convolution, ReLU and a 1x1 convolution that begins at zero, beside an average pool of the same window.

    The shortcut has no weights: where the width grows, zeros fill the new channels.
    """

    def __init__(self, inside: int, outside: int, side: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.side, self.stride, self.grows = side, stride, outside - inside
        self.conv1 = nn.Conv2d(inside, outside, side, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outside) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(outside, outside, 1, bias=False)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))
        same = x if self.side == 1 else F.avg_pool2d(x, self.side, self.stride)
        return y + F.pad(same, (0, 0, 0, 0, 0, self.grows))


class Block(nn.Sequential):
    """A residual layer that looks at ``side`` pixels and ``depth - 1`` that look at one."""

    def __init__(self, widths: tuple[int, int], side: int, stride: int, depth: int, *, batch_norm: bool) -> None:
        inside, outside = widths
        super().__init__(
            Residual(inside, outside, side, stride, batch_norm=batch_norm),
            *(Residual(outside, outside, 1, 1, batch_norm=batch_norm) for _ in range(depth - 1)),
        )


class LocalResNet(nn.Module):
    """The encoder's layers: ``blocks`` up to the 7x7 map, then one block to 5x5, and two to the one place."""

    def __init__(self, channels: int, image_size: int, shape: Shape, *, batch_norm: bool = False) -> None:
        super().__init__()
        n, width, depth = shape
        m = 4 * n if image_size == SIZES[0] else 8 * n
        if width < m:
            raise UserError(f"AMDIM's pooled feature of width {width} is narrower than its maps; take at least {m}")

        def block(inside: int, outside: int, side: int, stride: int, layers: int = depth) -> Block:
            return Block((inside, outside), side, stride, layers, batch_norm=batch_norm)

        stem: list[nn.Module] = []
        if image_size == SIZES[2]:  # the one padding, of mirrored pixels
            stem = [nn.Conv2d(channels, n, 5, stride=2, padding=2, padding_mode="reflect"), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem, nn.Conv2d(n if stem else channels, n, 3), nn.ReLU(inplace=True))
        if image_size == SIZES[0]:
            blocks: list[nn.Module] = [block(n, n, 1, 1, 1), block(n, 2 * n, 4, 2), block(2 * n, m, 2, 2)]
        else:
            blocks = [block(n, 2 * n, 4, 2), block(2 * n, 4 * n, 4, 2), block(4 * n, m, 2, 2)]
        blocks.append(nn.Sequential(nn.BatchNorm2d(m)) if batch_norm else nn.Sequential())
        self.blocks = nn.Sequential(*blocks)
        self.middle = block(m, m, 3, 1)
        self.top = nn.Sequential(block(m, m, 3, 1), block(m, width, 3, 1, 1))
        self.norm = nn.BatchNorm2d(width)
        self.local_width = m
        self.feature_info = [{"module": name} for name in ("stem", "blocks.0", "blocks.1", "blocks.2", "middle", "top")]

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m 7 7"]:
        """The finest map that the loss trains."""
        return self.blocks(self.stem(x))

    def scales(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b m 5 5"], Float[Tensor, "b m 7 7"]]:
        """The features of one place, of 5x5 and of 7x7."""
        seven = self.forward_features(x)
        five = self.middle(seven)
        return self.norm(self.top(five)).flatten(1), five, seven

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        return self.scales(x)[0]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Its layers from input to output, in timm's terms."""
        return {
            "stem": r"^stem",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^middle", (100,)), (r"^top|^norm", (101,))],
        }


class LocalEncoder(Backbone):
    """A ``LocalResNet`` as an encoder; ``dense`` is its 7x7 map."""

    model: LocalResNet

    @property
    def local_width(self) -> int:
        """Channels of the 5x5 and the 7x7 map."""
        return self.model.local_width

    def scales(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b m 5 5"], Float[Tensor, "b m 7 7"]]:
        """The features of one place, of 5x5 and of 7x7."""
        return self.model.scales(x)


def build(name: str, *, image_size: int, channels: int, **options: Any) -> LocalEncoder:
    """One of ``NAMES``; options are ``first``, ``width`` and ``depth`` instead of its own, and ``batch_norm``."""
    if image_size not in SIZES:
        raise UserError(f"{name} takes images of 32, 64 or 128 px, not {image_size}; use --image-size 128")
    unknown = options.keys() - {*Shape._fields, "batch_norm"}
    if unknown:
        raise UserError(f"{name} has no option {', '.join(sorted(unknown))}; it has first, width, depth, batch_norm")
    shape = NAMES[name]._replace(**{key: value for key, value in options.items() if key != "batch_norm"})
    model = LocalResNet(channels, image_size, shape, batch_norm=options.get("batch_norm", False))
    return LocalEncoder(model, name=name, image_size=image_size, channels=channels, options=options, arguments=None)
