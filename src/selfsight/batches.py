"""The batches that views make and methods take: named tuples, so that a wrong pairing is a type error.

A batch carries whatever its plan drew that enters the loss. ``index`` is the sample's position in its source.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
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


class TiledImages(NamedTuple):
    """Of each image the four tiles, and all of it downsampled to a tile's size.

    ``other`` says how many rows further on (or, below 0, back) the other image of its pair stands; the two went
    through the same downsampling and are both grey or both in colour.
    """

    whole: Float[Tensor, "b c s s"]
    tiles: Float[Tensor, "b 4 c s s"]
    other: Int[Tensor, " b"]
    index: Int[Tensor, " b"]


class Pieces(NamedTuple):
    """Four pieces of each image in row-major order, and the numbers in [0, 1) that shuffle those of the whole batch."""

    x: Float[Tensor, "b 4 c p p"]
    shuffle: Float[Tensor, "b n"]
    index: Int[Tensor, " b"]
