"""Swin, a transformer whose attention stays within windows that shift from block to block (arXiv 2103.14030)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.models.swin_transformer import (
    SwinTransformerBlock,
    get_relative_position_index,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone
from selfsight.encoders.protocol import Layer

_TABLE = "relative_position_bias_table"


class Swin(Backbone):
    """timm's ``SwinTransformer``, whose patches can be replaced before its blocks.

    All parameters are timm's: what was trained here loads back with ``strict=True``.
    """

    model: Any  # a SwinTransformer, whose stages timm does not type

    @property
    def patch(self) -> int:
        """Side of a patch in pixels, before any are merged."""
        return self.model.patch_embed.patch_size[0]

    @property
    def window(self) -> int:
        """Patches along the side of a window in the first stage."""
        return self.model.layers[0].blocks[0].window_size[0]

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns d"]:
        """Embedded patches as a map, after their norm."""
        return self.model.patch_embed(x)

    def encode(self, patches: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b width y x"]:
        """The last feature map that comes of such patches, after the last norm."""
        return self.model.norm(self.model.layers(patches)).permute(0, 3, 1, 2)

    @property
    def unit(self) -> int:
        """What one place of the last stage stands for is visible or hidden as a whole."""
        return self.stride

    @property
    def depth(self) -> int:
        """Stages."""
        return len(self.model.layers)

    def layer_width(self, number: int) -> int:
        """A stage ends with the merging that leads to the next, which doubles the width."""
        return self.model.layers[min(number, self.depth - 1)].blocks[0].dim

    def layer_stride(self, number: int) -> int:
        """Merging doubles the side of a patch."""
        return self.patch * 2 ** min(number, self.depth - 1)

    def layers(self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"], after: Sequence[int]) -> list[Layer]:
        """What the stages ``after`` (from 1) make of the visible units; the last stage's tokens are normed.

        A stage ends with the merging of its patches. Hidden tokens take no part in attention, and all other layers
        never see them.
        """
        units = x.shape[-1] // self.unit
        patches = self.patches(x)
        times = patches.shape[1] // units
        where = _within(visible, units, times)
        y, found = _take(patches.flatten(1, 2), where), list[Layer]()
        for number, stage in enumerate(self.model.layers):
            if number:
                blocks = stage.downsample(y.reshape(-1, times, times, y.shape[-1]))  # a unit's tokens stand together
                times //= 2
                where, y = _within(visible, units, times), blocks.reshape(len(x), -1, blocks.shape[-1])
                if number in after:
                    found.append(Layer(None, y, where))
            hidden = torch.ones(len(x), (units * times) ** 2, dtype=torch.bool, device=x.device)
            hidden = hidden.scatter(1, where, False).unflatten(1, (units * times, -1))
            for block in stage.blocks:
                y = _among_visible(block, y, where, hidden)
        if self.depth in after:
            found.append(Layer(None, self.model.norm(y), where))
        return found

    def fit_windows_(self) -> None:
        """Makes the windows smaller until they divide each stage's map, or hold all of it.

        So none of them is filled up with padding: of 7 patches they become 6 at 192 px (SimMIM's), 4 at 32 px with
        patches of 2. What the tables say of the distances that stay is kept; timm would stretch them.
        """
        sides = self._sides()
        self._shrink_windows_(
            next(w for w in range(self.window, 0, -1) if all(side <= w or side % w == 0 for side in sides))
        )

    def make_room_(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with tables of relative positions that can be loaded, wherever that only takes leaving some out.

        Windows become as small as those that it was trained with; of larger ones it keeps what ``fit_windows_`` would.
        """
        windows = {name: _window(x) for name, x in state.items() if name.endswith(_TABLE) and _window(x)}
        self._shrink_windows_(max(windows.values(), default=self.window))
        here = {name: _window(x) for name, x in self.state_dict().items() if name in windows}
        return {**state, **{name: _middle(state[name], min(windows[name], w)) for name, w in here.items()}}

    def _sides(self) -> list[int]:
        """Patches along the side of each stage's map."""
        return [self.image_size // self.patch // 2**stage for stage in range(len(self.model.layers))]

    def _shrink_windows_(self, window: int) -> None:
        if window >= self.window:
            return
        for side, stage in zip(self._sides(), self.model.layers, strict=True):
            for block in stage.blocks:
                _crop_(block.attn, min(side, window))
        self.model.set_input_size(window_size=window)
        self.options["window_size"] = window
        if self.arguments is not None:
            self.arguments["window_size"] = window


def _crop_(attention: Any, window: int) -> None:
    """Keeps the distances that a smaller window has, which lie in the middle of the table."""
    old = attention.relative_position_bias_table
    kept = _middle(old.detach(), window).clone()
    attention.relative_position_bias_table = nn.Parameter(kept, requires_grad=old.requires_grad)
    attention.window_size, attention.window_area = (window, window), window**2
    index = get_relative_position_index(window, window, device=old.device)
    attention.register_buffer("relative_position_index", index, persistent=False)


def _middle(table: Float[Tensor, "d heads"], window: int) -> Float[Tensor, "e heads"]:
    cut, side = _window(table) - window, 2 * _window(table) - 1
    return table.unflatten(0, (side, side))[cut : side - cut, cut : side - cut].flatten(0, 1)


def _window(table: Tensor) -> int:
    """Of how many patches a side a table has all distances; 0 if it is none."""
    side = math.isqrt(len(table)) if table.ndim == 2 else 0
    return (side + 1) // 2 if side % 2 and side**2 == len(table) else 0


def _within(visible: Int[Tensor, "b k"], units: int, times: int) -> Int[Tensor, "b n"]:
    """The places of the tokens of each visible unit, ``times`` by ``times``, unit by unit."""
    inside = torch.arange(times, device=visible.device)
    rows = (visible // units)[..., None, None] * times + inside[:, None]
    columns = (visible % units)[..., None, None] * times + inside
    return (rows * (units * times) + columns).flatten(1)


def _take(x: Float[Tensor, "b n d"], where: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    return x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))


def _among_visible(
    block: SwinTransformerBlock, y: Float[Tensor, "b n d"], where: Int[Tensor, "b n"], hidden: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b n d"]:
    """timm's block, in which hidden tokens are no keys; those that stand there are no queries either."""
    z = block.norm1(y)
    maps = z.new_zeros(len(z), hidden[0].numel(), z.shape[-1])
    maps = maps.scatter(1, where[..., None].expand_as(z), z).unflatten(1, hidden.shape[1:])
    y = y + block.drop_path1(_take(_attend(block, maps, hidden).flatten(1, 2), where))
    return y + block.drop_path2(block.mlp(block.norm2(y)))


def _attend(block: Any, x: Float[Tensor, "b h w d"], hidden: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w d"]:
    """Shifted windows of a map, in which what is hidden gets no attention; padding gets it, as in timm."""
    (height, width), window = x.shape[1:3], block.window_size
    away = (-block.shift_size[0], -block.shift_size[1])
    more = (0, -width % window[1], 0, -height % window[0])
    x = nn.functional.pad(x.roll(away, (1, 2)), (0, 0, *more))
    gone = nn.functional.pad(hidden.roll(away, (1, 2)), more)
    keys = window_partition(gone[..., None].to(x.dtype), window).flatten(1)
    mask = -100.0 * keys[:, None, :].expand(-1, block.window_area, -1)  # timm's own number for what is out of sight
    if block.attn_mask is not None:
        mask = mask + block.attn_mask.to(mask.dtype).repeat(len(x), 1, 1)
    windows = block.attn(window_partition(x, window).flatten(1, 2), mask=mask)
    whole = window_reverse(windows.unflatten(1, window), window, *x.shape[1:3])
    return whole[:, :height, :width].roll(block.shift_size, (1, 2))
