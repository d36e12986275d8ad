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


class HiddenPixels(NamedTuple):
    """One view of each image, whole, and which of its pixels nobody may look at."""

    x: Float[Tensor, "b c h w"]
    hidden: Bool[Tensor, "b h w"]
    index: Int[Tensor, " b"]


class PatchPairs(NamedTuple):
    """Patches of each image, and pairs of them: ``label`` says where ``second`` lies, as seen from ``first``."""

    x: Float[Tensor, "b n c p p"]
    first: Int[Tensor, "b pairs"]
    second: Int[Tensor, "b pairs"]
    label: Int[Tensor, "b pairs"]
    index: Int[Tensor, " b"]


class Puzzles(NamedTuple):
    """Tiles of each image in reading order, and for each of its puzzles the number of the permutation of them."""

    x: Float[Tensor, "b n c t t"]
    label: Int[Tensor, "b puzzles"]
    index: Int[Tensor, " b"]


class Exemplars(NamedTuple):
    """One patch of each image, a transform of that image's own exemplar, and where it was cut.

    ``corners`` are those of the patch, clockwise from its own top left, as ``x, y`` in shares of the image's sides.
    """

    x: Float[Tensor, "b c h w"]
    corners: Float[Tensor, "b 4 2"]
    index: Int[Tensor, " b"]


class ColouredImages(NamedTuple):
    """One view of each image without its colours, and these: ``x`` is lightness, ``ab`` are CIE Lab's a and b."""

    x: Float[Tensor, "b c h w"]
    ab: Float[Tensor, "b 2 h w"]
    index: Int[Tensor, " b"]


class QuarterSeen(NamedTuple):
    """One view of each image, whole, and the quarter of it that may be looked at.

    Quarters count in row-major order: 0 is the upper left, 1 the upper right, 2 the lower left, 3 the lower right.
    """

    x: Float[Tensor, "b c h w"]
    quarter: Int[Tensor, " b"]
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


class TurnedImages(NamedTuple):
    """One view of each image, upright, and the quarter turns, 0 to 3, by which its copies are to be turned."""

    x: Float[Tensor, "b c s s"]
    turns: Int[Tensor, "b k"]
    index: Int[Tensor, " b"]


class MaskedMultiCrop(NamedTuple):
    """Large crops, two or more, small ones, perhaps none, and which patches of each large crop are hidden.

    Each entry is one crop of every image, ``b c s s``, and one mask, ``b n``, in row-major order; it may be empty.
    """

    large: tuple[Tensor, ...]
    small: tuple[Tensor, ...]
    masked: tuple[Bool[Tensor, "b n"], ...]
    index: Int[Tensor, " b"]
