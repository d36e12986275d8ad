"""What every encoder is: pooled and dense features of a stated width; for transformers, access to tokens."""

from typing import Protocol, runtime_checkable

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
