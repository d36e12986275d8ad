"""ConvMAE's encoder (Gao et al., 2022, arXiv 2205.03892): two convolutional stages, then a transformer.

Images above 96 px are cut into patches of 16 px, in the three stages' grids of 4, 8 and 16 px a place, as in the
official code (Alpha-VL/ConvMAE, 3f3aec9). Up to 96 px a patch has 4 px and the grids 1, 2 and 4: the first stage keeps
the image's resolution and the grids their ratio of 4 : 2 : 1. Its depthwise convolutions are 3x3 then, not 5x5.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from timm.layers.norm import LayerNorm2d
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone
from selfsight.encoders.protocol import Stages
from selfsight.errors import UserError
from selfsight.sizes import SMALL


class Shape(NamedTuple):
    """The three stages' widths and depths, and the heads of the last."""

    widths: Sequence[int]
    depths: Sequence[int]
    heads: int


NAMES = {
    "convvit_tiny": Shape((64, 96, 192), (2, 2, 11), 3),  # the base's proportions, as wide as a ViT-Tiny
    "convvit_base": Shape((256, 384, 768), (2, 2, 11), 12),
}
RATIOS = (4, 2)
"""How many places of either convolutional stage make one of the last, along each axis."""


class Embed(nn.Sequential):
    """Patches that do not overlap, normalised and activated."""

    def __init__(self, inside: int, outside: int, side: int) -> None:
        super().__init__(nn.Conv2d(inside, outside, side, side), LayerNorm2d(outside, eps=1e-5), nn.GELU())


class MaskedBlock(nn.Module):
    """A transformer's block with a depthwise convolution in the place of attention.

    The convolution reads zeros where ``seen`` is 0, so that nothing hidden reaches a visible place. What it writes
    there is never read.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(width, eps=1e-5), LayerNorm2d(width, eps=1e-5)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.mix = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()  # fine-tuning may put others in their place

    def forward(self, x: Float[Tensor, "b d y x"], seen: Float[Tensor, "b 1 y x"] | None = None) -> Tensor:
        inside = self.conv1(self.norm1(x))
        if seen is not None:
            inside = inside * seen.to(inside.dtype)
        x = x + self.drop_path1(self.conv2(self.mix(inside)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ConvViT(nn.Module):
    """The encoder's layers; ``blocks`` is the transformer. It has no class token: the tokens' mean is normalised.

    That norm has no weights. The official code fine-tunes a new one, whose scale and shift a linear classifier has
    anyway, and pretrains none: the one it pretrains is of the stages' sum.
    """

    def __init__(self, channels: int, image_size: int, shape: Shape, *, patch: int, kernel: int) -> None:
        super().__init__()
        first, second, width = shape.widths
        self.patch, self.widths = patch, (first, second)
        self.grid_size = (image_size // patch, image_size // patch)
        self.embed1, self.embed2 = Embed(channels, first, patch // RATIOS[0]), Embed(first, second, 2)
        self.embed3, self.project = Embed(second, width, 2), nn.Linear(width, width)
        self.stage1, self.stage2 = (
            nn.ModuleList([MaskedBlock(wide, kernel) for _ in range(depth)])
            for wide, depth in zip(self.widths, shape.depths[:2], strict=True)
        )
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size[0] * self.grid_size[1], width))
        norm = cast(type[nn.LayerNorm], partial(nn.LayerNorm, eps=1e-6))
        self.blocks = nn.Sequential(
            *[Block(width, shape.heads, qkv_bias=True, norm_layer=norm) for _ in range(shape.depths[2])]
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        ends = [f"stage{i}.{depth - 1}" for i, depth in enumerate(shape.depths[:2], start=1)]
        self.feature_info = [{"module": name} for name in (*ends, *(f"blocks.{i}" for i in range(shape.depths[2])))]
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.modules():  # the convolutions keep torch's start, but the last stage's patches
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.embed3[0].weight.data.flatten(1))  # pyright: ignore

    def stages(self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"] | None = None) -> Stages:
        """Each stage's output; with ``visible`` the last stage's tokens are those, untouched by what is hidden."""
        seen = None
        if visible is not None:
            rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
            seen = x.new_zeros(len(x), rows * columns).scatter(1, visible.long(), 1.0).unflatten(1, (1, rows, columns))
        maps: list[Tensor] = []
        for embed, blocks, ratio in zip((self.embed1, self.embed2), (self.stage1, self.stage2), RATIOS, strict=True):
            x = embed(x)
            here = None if seen is None else seen.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
            for block in blocks:
                x = block(x, here)
            maps.append(x)
        x = self.embed3(x)
        tokens = self.project(x.flatten(2).transpose(1, 2)) + self._positions(x.shape[-2:])
        if visible is not None:
            tokens = torch.take_along_dim(tokens, visible[..., None].long(), 1)
        tokens = self.blocks(tokens)
        return Stages(self.norm(tokens.mean(1)), tokens, (maps[0], maps[1]))

    def _positions(self, grid: Sequence[int]) -> Tensor:
        if tuple(grid) == self.grid_size:
            return self.pos_embed
        new, old = list(grid), list(self.grid_size)
        return resample_abs_pos_embed(self.pos_embed, new_size=new, old_size=old, num_prefix_tokens=0)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows columns"]:
        """The transformer's tokens as a map, normalised."""
        tokens = self.norm(self.stages(x).tokens)
        return tokens.transpose(1, 2).unflatten(2, (x.shape[-2] // self.patch, -1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        return self.stages(x).pooled

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Its layers from input to output, in timm's terms: all before the transformer is one, as in the code."""
        return {"stem": r"^embed|^stage|^project|^pos_embed", "blocks": r"^blocks\.(\d+)"}


class ConvTransformer(Backbone):
    """A ``ConvViT`` as an encoder: a feature, and its stages for what masks their places."""

    model: ConvViT

    @property
    def patch(self) -> int:
        """Side of the last stage's patches in pixels."""
        return self.model.patch

    @property
    def map_widths(self) -> tuple[int, int]:
        """Channels of the convolutional stages."""
        return self.model.widths

    def stages(self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"] | None = None) -> Stages:
        """Each stage's output; with ``visible`` the last stage's tokens are those, untouched by what is hidden."""
        return self.model.stages(x, visible)


def build(name: str, *, image_size: int, channels: int, **options: Any) -> ConvTransformer:
    """One of ``NAMES``; options are ``patch_size``, ``kernel``, and other ``widths``, ``depths``, ``heads``."""
    unknown = options.keys() - {*Shape._fields, "patch_size", "kernel"}
    if unknown:
        known = "patch_size, kernel, widths, depths, heads"
        raise UserError(f"{name} has no option {', '.join(sorted(unknown))}; it has {known}")
    shape = NAMES[name]._replace(**{key: value for key, value in options.items() if key in Shape._fields})
    small = image_size <= SMALL
    patch, kernel = options.get("patch_size", 4 if small else 16), options.get("kernel", 3 if small else 5)
    if patch % 4:
        raise UserError(
            f"{name} halves its grid twice, so a patch of {patch} px cannot be; use --patch-size 4, 8 or 16"
        )
    if image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise UserError(
            f"{name} cuts images into patches of {patch} px, which do not divide {image_size} px; "
            f"use --image-size {near} or another --patch-size"
        )
    model = ConvViT(channels, image_size, shape, patch=patch, kernel=kernel)
    return ConvTransformer(model, name=name, image_size=image_size, channels=channels, options=options, arguments=None)
