"""Backbones as encoders: any timm model, our own, or a module of the user's; vision transformers with their tokens."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfsight.encoders.context import attend
from selfsight.encoders.protocol import Layer
from selfsight.errors import UserError


class Backbone(nn.Module):
    """An encoder round ``model``, whose state dict is the model's own with the prefix ``model.``.

    Args:
        model: gives the pooled feature, and in ``forward_features`` the last feature map (timm's convention).
        name: what ``build_encoder`` calls it.
        image_size, channels: of the images it was built for.
        options: what ``build_encoder`` needs besides to build it again.
        arguments: what ``timm.create_model`` needs besides its ``num_classes=0``; None where timm has no such model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        image_size: int,
        channels: int,
        options: Mapping[str, Any],
        arguments: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.name, self.image_size, self.channels = name, image_size, channels
        self.options = dict(options)
        self.arguments = None if arguments is None else dict(arguments)
        self.channels_last = False
        self._probe()

    @torch.no_grad()
    def _probe(self) -> None:
        """Finds width, stride and memory format by one forward pass."""
        training = self.training
        self.eval()
        x = torch.zeros(1, self.channels, self.image_size, self.image_size)
        pooled, last = self(x), self._features(x)
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            raise UserError(f"{self.name} gives no pooled feature: its output is {_described(pooled)}")
        try:
            side = self._map(last, x).shape[-1]
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            raise UserError(f"{self.name} gives no feature map: forward_features gives {_described(last)}") from error
        self.width, self.stride = pooled.shape[1], max(1, round(self.image_size / side))
        self.channels_last = last.ndim == 4 and not self._channels_come_last()
        self.train(training)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        return self.model(x)

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """The last feature map, or the patch tokens as a map."""
        return self._map(self._features(x), x)

    def _map(self, y: Tensor, x: Tensor) -> Tensor:
        if y.ndim == 4:
            return y.permute(0, 3, 1, 2) if self._channels_come_last() else y
        alone = getattr(self.model, "cls_token", None) is not None  # VOLO does not count its own
        patches = y[:, getattr(self.model, "num_prefix_tokens", int(alone)) :]
        rows = round((patches.shape[1] * x.shape[-2] / x.shape[-1]) ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (rows, -1))

    def _features(self, x: Tensor) -> Any:
        return self.model.forward_features(x)  # pyright: ignore[reportCallIssue]

    def _channels_come_last(self) -> bool:
        """Whether the model's own maps are ``b h w c`` (Swin)."""
        return str(getattr(self.model, "output_fmt", "")).upper().endswith("NHWC")


def _described(out: Any) -> str:
    return f"the shape {list(out.shape)}" if isinstance(out, Tensor) else f"no tensor but a {type(out).__name__}"


class Transformer(Backbone):
    """A vision transformer (timm's class of that name, for DeiT and DINOv2 too) whose tokens can be reached.

    It takes images of other sizes than it was built for, if they are multiples of the patch: positions are
    interpolated, bicubic with antialiasing, as timm does.
    """

    model: VisionTransformer

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.model.patch_embed.patch_size[0]

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(self.model.blocks)

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns d"]:
        """Embedded patches as a map, before any position."""
        return self.model.patch_embed(x)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patches with their positions, in row-major order, without class token."""
        return self.place(self.patches(x))

    def encode(self, patches: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b d rows columns"]:
        """The last feature map that comes of such patches, after the last norm."""
        y = self.tokens(self.place(patches))[1]
        return y.transpose(1, 2).unflatten(2, patches.shape[1:3])

    def place(self, patches: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b n d"]:
        """Such patches with their positions, in row-major order."""
        grid = patches.shape[1:3]
        positions = self._positions()[1]
        if positions is not None and grid != self.model.patch_embed.grid_size:
            old = list(self.model.patch_embed.grid_size)
            positions = resample_abs_pos_embed(positions, new_size=list(grid), old_size=old, num_prefix_tokens=0)
        return patches.flatten(1, 2) if positions is None else patches.flatten(1, 2) + positions

    def tokens(
        self, embedded: Float[Tensor, "b n d"], visible: Int[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k d"]]:
        """The blocks over ``embedded``, or over its ``visible`` positions only: class token and patch tokens.

        Both after the last norm. Where the model has no class token the first is its pooled feature.
        """
        return self.levels(embedded, visible)[-1]

    def levels(
        self, embedded: Float[Tensor, "b n d"], visible: Int[Tensor, "b k"] | None = None, after: Collection[int] = ()
    ) -> list[tuple[Float[Tensor, "b d"], Float[Tensor, "b k d"]]]:
        """What the blocks numbered ``after`` (from 1) give as it is, in their order, and at last what ``tokens`` does.

        Where the model has no class token the first of each pair is the mean of the second.
        """
        model = self.model
        seen = embedded
        if visible is not None:
            seen = embedded.gather(1, visible[..., None].expand(-1, -1, embedded.shape[-1]))
        before = self._prefix()
        if before is not None:
            seen = torch.cat([before.to(seen.dtype).expand(len(seen), -1, -1), seen], dim=1)
        x, found = model.norm_pre(model.pos_drop(seen)), list[tuple[Tensor, Tensor]]()
        for number, block in enumerate(model.blocks, start=1):
            x = block(x)
            if number in after:
                patches = x[:, model.num_prefix_tokens :]
                found.append((patches.mean(1) if model.cls_token is None else x[:, 0], patches))
        return [*found, self._ends(x)]

    def in_context(
        self, embedded: Float[Tensor, "b n d"], context: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The blocks over all of ``embedded``, each with keys and values of the ``context``, as it is there by then.

        Class and register tokens are always seen. Returns what ``tokens`` does.
        """
        x = embedded
        before = self._prefix()
        if before is not None:
            x = torch.cat([before.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
            always = torch.arange(before.shape[1], device=context.device).expand(len(context), -1)
            context = torch.cat([always, context + before.shape[1]], dim=1)
        x = self.model.norm_pre(self.model.pos_drop(x))
        for block in self.model.blocks:
            x = attend(block, x, context)
        return self._ends(x)

    def _ends(self, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k d"]]:
        """Class token, or the pooled feature, and patch tokens from what the last block gave."""
        model = self.model
        y = model.norm(x)
        patches = model.fc_norm(y[:, model.num_prefix_tokens :])
        if model.cls_token is not None:
            return model.fc_norm(y[:, 0]), patches
        return model.forward_head(y, pre_logits=True), patches

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """The patch tokens as a map, after the last norm."""
        return self.encode(self.patches(x))

    @property
    def unit(self) -> int:
        """A patch is visible or hidden as a whole."""
        return self.patch

    def layer_width(self, number: int) -> int:
        """All blocks are equally wide."""
        return self.model.embed_dim

    def layer_stride(self, number: int) -> int:
        """Each token stands for one patch."""
        return self.patch

    def layers(self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"], after: Sequence[int]) -> list[Layer]:
        """What the blocks ``after`` (from 1) make of the visible patches; the last block's tokens are normed."""
        levels = self.levels(self.embed(x), visible, after=[number for number in after if number < self.depth])
        found = [Layer(token, seen, visible) for token, seen in levels]
        return found if self.depth in after else found[:-1]

    def _prefix(self) -> Tensor | None:
        """Class and register tokens with their positions, ``1 p d``."""
        tokens: list[Tensor] = [t for t in (self.model.cls_token, self.model.reg_token) if t is not None]
        positions = self._positions()[0]
        if not tokens:
            return None
        return torch.cat(tokens, dim=1) if positions is None else torch.cat(tokens, dim=1) + positions

    def _positions(self) -> tuple[Tensor | None, Tensor | None]:
        """The position embeddings of the prefix tokens and of the patches."""
        every = self.model.pos_embed
        if every is None or self.model.no_embed_class:
            return None, every
        return every[:, : self.model.num_prefix_tokens], every[:, self.model.num_prefix_tokens :]


class Wrapped(nn.Module):
    """Any module as an encoder; made by ``wrap``."""

    def __init__(self, module: nn.Module, width: int, dense: Callable[[Tensor], Tensor] | None, stride: int) -> None:
        super().__init__()
        self.model = module
        self.name, self.width, self.stride = type(module).__name__, width, stride
        self.image_size, self.channels = None, None
        self.options: dict[str, Any] = {}
        self.arguments = None
        self.channels_last = False
        self._dense = (dense,)  # in a tuple, so that a part of the module is not registered twice

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        y = self.model(x)
        if y.shape[1:] != (self.width,):
            raise ValueError(f"{self.name} was wrapped with width {self.width}, but gives {list(y.shape)}")
        return y

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """The last feature map. Raises ``ValueError`` where ``wrap`` was told of none."""
        (dense,) = self._dense
        if dense is None:
            raise ValueError(f"{self.name} was wrapped without a dense feature; use wrap(..., dense=..., stride=...)")
        return dense(x)


def wrap(
    module: nn.Module, width: int, dense: Callable[[Tensor], Tensor] | None = None, stride: int | None = None
) -> Wrapped:
    """Makes an encoder of any module that maps images ``b c h w`` to features ``b width``.

    Args:
        module: the backbone, without a classifier.
        width: of its output.
        dense: gives its last feature map ``b d y x``: a part of the module or one of its methods (not a lambda, which a
            copy of the encoder would share).
        stride: pixels of the input per position of that map; needed with ``dense``.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> encoder = wrap(net, 8, dense=net[:2], stride=2)
    >>> encoder(torch.zeros(2, 3, 9, 9)).shape, encoder.dense(torch.zeros(2, 3, 9, 9)).shape
    (torch.Size([2, 8]), torch.Size([2, 8, 4, 4]))
    """
    if dense is not None and stride is None:
        raise ValueError("a dense feature needs its stride: wrap(module, width, dense=..., stride=...)")
    return Wrapped(module, width, dense, stride or 1)
