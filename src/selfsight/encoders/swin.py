"""Swin, a transformer whose attention stays within windows that shift from block to block (arXiv 2103.14030)."""

from typing import Any

from jaxtyping import Float
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone


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

    def fit_windows_(self) -> None:
        """Makes the windows smaller until they divide each stage's map, or hold all of it.

        So none of them is filled up with padding: of 7 patches they become 6 at 192 px (SimMIM's), 4 at 32 px with
        patches of 2. What the tables say of the distances that stay is kept; timm would stretch them.
        """
        sides = [self.image_size // self.patch // 2**stage for stage in range(len(self.model.layers))]
        window = next(w for w in range(self.window, 0, -1) if all(side <= w or side % w == 0 for side in sides))
        if window == self.window:
            return
        for side, stage in zip(sides, self.model.layers, strict=True):
            for block in stage.blocks:
                _crop_(block.attn, min(side, window))
        self.model.set_input_size(window_size=window)
        self.options["window_size"] = window
        if self.arguments is not None:
            self.arguments["window_size"] = window


def _crop_(attention: Any, window: int) -> None:
    """Keeps the distances that a smaller window has, which lie in the middle of the table."""
    cut, side = attention.window_size[0] - window, 2 * attention.window_size[0] - 1
    old = attention.relative_position_bias_table
    kept = old.detach().unflatten(0, (side, side))[cut : side - cut, cut : side - cut].flatten(0, 1)
    attention.relative_position_bias_table = nn.Parameter(kept.clone(), requires_grad=old.requires_grad)
    attention.window_size, attention.window_area = (window, window), window**2
    index = get_relative_position_index(window, window, device=old.device)
    attention.register_buffer("relative_position_index", index, persistent=False)
