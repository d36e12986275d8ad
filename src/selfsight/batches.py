"""The batches that views make and methods take: named tuples, so that a wrong pairing is a type error.

A batch carries whatever its plan drew that enters the loss. ``index`` is the sample's position in its source.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Images(NamedTuple):
    """One view of each image."""

    x: Float[Tensor, "b c h w"]
    index: Int[Tensor, " b"]


class TwoViews(NamedTuple):
    """Two views of each image."""

    x1: Float[Tensor, "b c h w"]
    x2: Float[Tensor, "b c h w"]
    index: Int[Tensor, " b"]


class LocatedViews(NamedTuple):
    """Two views of each image, and where in it they lie.

    A box has the corners ``left, top, right, bottom`` of what a view shows, in shares of the image's width and height
    and as the view shows them: in a mirrored view ``left`` is greater than ``right``.
    """

    x1: Float[Tensor, "b c h w"]
    x2: Float[Tensor, "b c h w"]
    box1: Float[Tensor, "b 4"]
    box2: Float[Tensor, "b 4"]
    index: Int[Tensor, " b"]


class MultiCrop(NamedTuple):
    """Large crops, two or more where crops are compared, and small ones, perhaps none.

    Each entry is one crop of every image, ``b c s s``.
    """

    large: tuple[Tensor, ...]
    small: tuple[Tensor, ...]
    index: Int[Tensor, " b"]


class MaskedImages(NamedTuple):
    """One view of each image and a partition of its patches, as positions in row-major order."""

    x: Float[Tensor, "b c h w"]
    visible: Int[Tensor, "b k"]
    masked: Int[Tensor, "b m"]
    index: Int[Tensor, " b"]


class Patches(NamedTuple):
    """A grid of patches, which may overlap, of one view of each image."""

    x: Float[Tensor, "b rows columns c p p"]
    index: Int[Tensor, " b"]


class PlacedViews(NamedTuple):
    """Two views of each image, and for each view a number in [0, 1) that chooses a place in its feature map."""

    x1: Float[Tensor, "b c h w"]
    x2: Float[Tensor, "b c h w"]
    place: Float[Tensor, "b 2"]
    index: Int[Tensor, " b"]


class MaskedPictures(NamedTuple):
    """One crop of each image at two sizes, for an encoder and for the tokenizer whose codes it predicts.

    ``masked`` says which of the encoder's patches are hidden, in row-major order.
    """

    x: Float[Tensor, "b c h w"]
    picture: Float[Tensor, "b c s t"]
    masked: Bool[Tensor, "b n"]
    index: Int[Tensor, " b"]


class SeededImages(NamedTuple):
    """One view of each image, and two numbers below 2²⁴ from which a method draws what noise it needs for it."""

    x: Float[Tensor, "b c h w"]
    seed: Int[Tensor, "b 2"]
    index: Int[Tensor, " b"]
