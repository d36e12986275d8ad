"""What every encoder is: pooled and dense features of a stated width; for transformers, access to tokens."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """A backbone: an ``nn.Module`` (so are all implementations) with a pooled and a dense feature."""

    width: int
    """Width of the pooled feature."""
    stride: int
    """Pixels of the input per position of the dense feature."""

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]: ...

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """The last feature map, or the patch tokens as a map."""
        ...


@runtime_checkable
class LocalEncoder(Encoder, Protocol):
    """An encoder whose maps of 5x5 and of 7x7 places each see a part of the image only."""

    local_width: int
    """Channels of both maps."""

    def scales(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b m 5 5"], Float[Tensor, "b m 7 7"]]:
        """The features of one place (the pooled feature), of 5x5 and of 7x7."""
        ...


@runtime_checkable
class TokenEncoder(Encoder, Protocol):
    """A vision transformer whose tokens can be reached."""

    patch: int

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patches with their positions, without class token."""
        ...

    def tokens(
        self, embedded: Float[Tensor, "b n d"], visible: Int[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k d"]]:
        """The blocks over ``embedded``, or over its ``visible`` positions only: class token (pooled where the model has
        none) and patch tokens, both after the last norm."""
        ...


@runtime_checkable
class ContextEncoder(TokenEncoder, Protocol):
    """A vision transformer whose tokens can all look at a part of them only."""

    def in_context(
        self, embedded: Float[Tensor, "b n d"], context: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The blocks over all of ``embedded``, each with keys and values of the ``context`` alone: class token (pooled
        where the model has none) and patch tokens, both after the last norm. A class token is always seen."""
        ...


@runtime_checkable
class LayeredEncoder(TokenEncoder, Protocol):
    """A vision transformer whose tokens can be reached between its blocks."""

    depth: int
    """How many blocks it has."""

    def levels(
        self, embedded: Float[Tensor, "b n d"], visible: Int[Tensor, "b k"] | None = None, after: Collection[int] = ()
    ) -> list[tuple[Float[Tensor, "b d"], Float[Tensor, "b k d"]]]:
        """Class token and patch tokens as the blocks numbered ``after`` (from 1) give them, without a norm, in the
        blocks' order; and at last what ``tokens`` returns."""
        ...


@runtime_checkable
class MaskableEncoder(Encoder, Protocol):
    """A transformer whose patches can be replaced before its blocks: a vision transformer, BEiT's, Swin."""

    patch: int

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns d"]:
        """Embedded patches as a map, before any position."""
        ...

    def encode(self, patches: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b width y x"]:
        """The last feature map that comes of such patches, after the last norm."""
        ...


@runtime_checkable
class PlacedEncoder(TokenEncoder, MaskableEncoder, Protocol):
    """A vision transformer whose patches can be replaced before they get their positions, and whose class token can
    be reached then too."""

    def place(self, patches: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b n d"]:
        """Such patches with their positions, in row-major order: ``embed(x)`` is ``place(patches(x))``."""
        ...


class Stages(NamedTuple):
    """What the stages of a hybrid encoder give."""

    pooled: Float[Tensor, "b width"]
    """The feature: the mean of ``tokens``, normalised."""
    tokens: Float[Tensor, "b k width"]
    """The last stage's, without a norm."""
    maps: tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"]]
    """The convolutional stages', four and two times as fine as the last along each axis."""


@runtime_checkable
class StagedEncoder(Encoder, Protocol):
    """Two convolutional stages and a transformer, whose places can be hidden in all three."""

    patch: int
    """Pixels of a place of the last stage along each axis."""
    map_widths: tuple[int, int]
    """Channels of the convolutional stages."""

    def stages(self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"] | None = None) -> Stages:
        """The stages over the whole image, or with only the ``visible`` places of the last stage to be read."""
        ...


class Layer(NamedTuple):
    """What one layer of an encoder makes of the visible part of an image."""

    token: Float[Tensor, "b d"] | None
    """The class token; pooled where the model has none, None where its layers have maps of different sizes."""
    seen: Float[Tensor, "b n d"]
    """The visible tokens."""
    where: Int[Tensor, "b n"]
    """Their places in the layer's map, in row-major order."""


@runtime_checkable
class ScaledEncoder(Encoder, Protocol):
    """A transformer that can do with a part of the image, and whose layers' scales are known: a ViT or Swin."""

    @property
    def unit(self) -> int:
        """Pixels along the side of what is visible or hidden as a whole."""
        ...

    @property
    def depth(self) -> int:
        """Its layers, counted from 1: blocks of a ViT; stages of Swin, which end with the merging that follows."""
        ...

    def layers(self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"], after: Sequence[int]) -> list[Layer]:
        """What the layers ``after`` make of the visible units, no other token taking part; the last one normed."""
        ...

    def layer_width(self, number: int) -> int:
        """Length of that layer's tokens."""
        ...

    def layer_stride(self, number: int) -> int:
        """Pixels along the side of what one of its tokens stands for."""
        ...
