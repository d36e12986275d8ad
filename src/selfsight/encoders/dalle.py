"""The encoder of DALL-E's discrete autoencoder (Ramesh et al., 2021, arXiv 2102.12092, appendix A.2; openai/DALL-E).

Groups of residual blocks whose width doubles, a maximum pool between each two. What stands after them, a 1x1
convolution to one number for each code, is the tokenizer's and not here: a run of ``dvae`` chooses the number of codes.
Parameters have the official names, but for ``weight`` and ``bias`` in the place of ``w`` and ``b``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone
from selfsight.errors import UserError

MARGIN = 0.1
"""Pixels are moved from [0, 1] into [0.1, 0.9], where their logit is finite (``dall_e/utils.py``)."""


class Shape(NamedTuple):
    """Width of the first group, blocks in a group, groups: the map has a 2^(groups - 1)-th of the image's side."""

    hidden: int
    blocks: int
    groups: int


NAMES = {
    "dalle": Shape(256, 2, 4),  # the published one
    "dalle_small": Shape(128, 2, 3),  # for images up to 96 px: a quarter of the side
    "dalle_nano": Shape(32, 1, 3),  # the tests'
}


def conv(inside: int, outside: int, side: int) -> nn.Conv2d:
    """A convolution that keeps the size and begins as DALL-E's: normal of unit gain, no bias."""
    layer = nn.Conv2d(inside, outside, side, padding=(side - 1) // 2)
    nn.init.normal_(layer.weight, std=(inside * side**2) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Four convolutions of a quarter of the width beside a shortcut, their sum scaled down by the number of blocks."""

    def __init__(self, inside: int, outside: int, blocks: int) -> None:
        super().__init__()
        quarter, self.gain = outside // 4, 1 / blocks**2
        self.id_path = conv(inside, outside, 1) if inside != outside else nn.Identity()
        layers: dict[str, nn.Module] = {}
        for k, (a, b, side) in enumerate(
            [(inside, quarter, 3), (quarter, quarter, 3), (quarter, quarter, 3), (quarter, outside, 1)], start=1
        ):
            layers |= {f"relu_{k}": nn.ReLU(), f"conv_{k}": conv(a, b, side)}
        self.res_path = _named(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleEncoder(nn.Module):
    """Images in [0, 1] to a map of ``hidden * 2**(groups - 1)`` channels, after a ReLU; pooled it is the feature."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, blocks, groups = shape
        parts: dict[str, nn.Module] = {"input": conv(channels, hidden, 7)}
        inside = hidden
        for g in range(groups):
            layers: dict[str, nn.Module] = {}
            for k in range(blocks):
                layers[f"block_{k + 1}"] = Block(inside, hidden * 2**g, groups * blocks)
                inside = hidden * 2**g
            if g < groups - 1:
                layers["pool"] = nn.MaxPool2d(2)
            parts[f"group_{g + 1}"] = _named(layers)
        self.blocks = _named(parts)
        self.feature_info = [{"module": f"blocks.{name}"} for name in parts]
        self.relu = nn.ReLU()

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        return self.relu(self.blocks((1 - 2 * MARGIN) * x + MARGIN))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.forward_features(x).mean(dim=(2, 3))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Its layers from input to output, in timm's terms."""
        return {"stem": r"^blocks\.input", "blocks": [(r"^blocks\.group_(\d+)", None)]}


def build(name: str, *, image_size: int, channels: int, **options: Any) -> Backbone:
    """One of ``NAMES``; options are ``hidden``, ``blocks`` and ``groups`` instead of its own."""
    unknown = options.keys() - {*Shape._fields}
    if unknown:
        raise UserError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(Shape._fields)}")
    shape = NAMES[name]._replace(**options)
    factor = 2 ** (shape.groups - 1)
    if image_size % factor:
        near = max(factor, round(image_size / factor) * factor)
        raise UserError(f"{name} halves images to a {factor}th, {image_size} px do not divide; use --image-size {near}")
    model = DalleEncoder(channels, shape)
    return Backbone(model, name=name, image_size=image_size, channels=channels, options=options, arguments=None)


def from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published encoder's state dict as ours: the encoder's part, and that of the 1x1 convolution to the codes."""
    encoder: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, value in state.items():
        place, _, kind = name.rpartition(".")
        if kind not in ("w", "b") or not place.startswith("blocks."):
            raise UserError(f"'{name}' is no parameter of DALL-E's encoder; give its state dict, blocks.input.w and on")
        ours = "weight" if kind == "w" else "bias"
        if place == "blocks.output.conv":
            head[ours] = value
        else:
            encoder[f"{place}.{ours}"] = value
    if "blocks.input.weight" not in encoder or not head:
        raise UserError("this is not the whole state dict of DALL-E's encoder: its input or its output is missing")
    return encoder, head


def shape_of(encoder: Mapping[str, Tensor]) -> Shape:
    """The shape behind an encoder's state dict."""
    places = [name.split(".") for name in encoder]
    groups = {parts[1] for parts in places if parts[1].startswith("group_")}
    blocks = {parts[2] for parts in places if parts[1] == "group_1"}
    return Shape(encoder["blocks.input.weight"].shape[0], len(blocks), len(groups))


def _named(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence
