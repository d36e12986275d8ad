"""Views as the model sees them: originals beside what a pipeline made of them, normalisation undone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from selfsight.batches import (
    ColouredImages,
    Exemplars,
    HiddenPixels,
    Images,
    LocatedViews,
    MaskedImages,
    MaskedMultiCrop,
    MaskedPictures,
    MultiCrop,
    Patches,
    Pieces,
    PlacedViews,
    QuarterSeen,
    SeededImages,
    TiledImages,
    TurnedImages,
    TwoViews,
)
from selfsight.data.protocol import DataError, Source, Unreadable
from selfsight.keyed import Key, permutation
from selfsight.lab import to_rgb
from selfsight.parts.montage import PIECES, arrangement, montage
from selfsight.parts.turns import turn
from selfsight.report.thumbnails import as_image, thumbnail
from selfsight.sizes import SMALL
from selfsight.views.protocol import Views

_HIDDEN = 0.5
"""The grey of what is masked."""
_RIM = (255, 120, 0)
"""The orange around what was predicted."""


class Originals(NamedTuple):
    """Images as their source holds them, and where."""

    images: list[UInt8[np.ndarray, "c h w"]]
    positions: Int[np.ndarray, " b"]


def read_originals(source: Source, positions: Sequence[int] | np.ndarray) -> Originals:
    """The images at ``positions``; what cannot be read is left out."""
    wanted = np.asarray(positions, dtype=np.int64)
    read = source.read_many(wanted)
    kept = [(image, at) for image, at in zip(read, wanted, strict=True) if not isinstance(image, Unreadable)]
    return Originals([image for image, _ in kept], np.array([at for _, at in kept], dtype=np.int64))


def sample_positions(source: Source, n: int, *, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Positions of ``n`` images chosen by key (all where there are fewer), in keyed order."""
    return permutation(len(source), seed=seed, epoch=0, stream="report")[:n]


def render_batch(views: Views[Any], originals: Originals, *, epoch: int = 0, seed: int = 0) -> Any:
    """The batch that training would see of these images in ``epoch``: whole small images, or cuts of large ones."""
    index = torch.from_numpy(originals.positions)
    key = Key(seed, torch.full_like(index, epoch), index)
    plan = views.plan(key)
    images = [torch.from_numpy(np.ascontiguousarray(image)) for image in originals.images]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) == 1 and max(images[0].shape[1:]) <= SMALL:
        return views.render(torch.stack(images), plan, key)
    return views.render(views.cut(images, plan), plan, key)


def _range(views: Views[Any], channels: int) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """What the pipeline's plain view makes of black and of white: normalisation is affine, so this undoes it."""
    ends: list[Tensor] = []
    for value in (0, 255):
        flat = Originals([np.full((channels, 64, 64), value, np.uint8)], np.zeros(1, np.int64))
        ends.append(render_batch(views.plain, flat).x[0].mean(dim=(1, 2))[:, None, None].float().cpu())
    return ends[0], ends[1]


def undo(views: Views[Any], x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Model input back to 8-bit images: ``(x - black) / (white - black)``, both as the plain view renders them."""
    black, white = _range(views, x.shape[1])
    return ((x.float().cpu() - black) / (white - black)).clamp(0, 1).mul(255).round().to(torch.uint8)


def hide(x: UInt8[Tensor, "b c h w"], masked: Int[Tensor, "b m"], patches: int) -> UInt8[Tensor, "b c h w"]:
    """The images with the patches at ``masked`` greyed; ``patches`` is their number per image."""
    flags = torch.zeros(len(x), patches, dtype=torch.bool)
    return greyed(x, flags.scatter_(1, masked.cpu(), torch.ones_like(masked.cpu(), dtype=torch.bool)))


def greyed(x: UInt8[Tensor, "b c h w"], masked: Bool[Tensor, "b n"]) -> UInt8[Tensor, "b c h w"]:
    """The images with the patches greyed that are ``masked``, in row-major order of a square grid."""
    b, c, h, w = x.shape
    side = round(masked.shape[1] ** 0.5)
    mask = masked.cpu().view(b, 1, side, 1, side, 1).expand(b, c, side, h // side, side, w // side).reshape(b, c, h, w)
    return torch.where(mask, torch.tensor(int(255 * _HIDDEN), dtype=torch.uint8), x)


def veiled(x: UInt8[Tensor, "b c h w"], batch: MaskedImages | HiddenPixels | QuarterSeen) -> UInt8[Tensor, "b c h w"]:
    """The images with what the batch hides greyed."""
    if isinstance(batch, MaskedImages):
        return hide(x, batch.masked, batch.visible.shape[1] + batch.masked.shape[1])
    if isinstance(batch, HiddenPixels):
        return torch.where(batch.hidden.cpu()[:, None], torch.tensor(int(255 * _HIDDEN), dtype=torch.uint8), x)
    every, seen = torch.arange(4).expand(len(x), -1), batch.quarter.cpu()[:, None]
    return hide(x, every[every != seen].view(-1, 3), patches=4)


def side_by_side(
    x: Float[Tensor, "b rows columns c p p"], undo: Callable[[Tensor], UInt8[Tensor, "n c p p"]]
) -> UInt8[Tensor, "b c h w"]:
    """Each image's patches as one picture, a pixel's gap between them."""
    b, rows, columns = x.shape[:3]
    patches = torch.nn.functional.pad(undo(x.flatten(0, 2)), (0, 1, 0, 1), value=255)
    grid = patches.unflatten(0, (b, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return grid.flatten(4, 5).flatten(2, 3)


def in_colour(batch: ColouredImages, stride: int) -> UInt8[Tensor, "b 3 h w"]:
    """The images in the colours that are to be said: those of every ``stride``-th pixel, for its whole square."""
    height, width = batch.x.shape[2:]
    sparse = batch.ab[:, :, ::stride, ::stride].repeat_interleave(stride, 2).repeat_interleave(stride, 3)
    rgb = to_rgb(50 * batch.x[:, 0] + 50, *sparse[:, :, :height, :width].unbind(1))
    return torch.stack(rgb, dim=1).mul(255).round().to(torch.uint8).cpu()


def outlined(image: Image.Image, squares: Sequence[Float[Tensor, "4 2"]]) -> Image.Image:
    """The image with squares drawn on it: what the patches beside it were cut from."""
    larger = -(-256 // min(image.size))
    drawn = image.convert("RGB").resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
    for square in squares:
        points = [(x * drawn.width, y * drawn.height) for x, y in square.tolist()]
        ImageDraw.Draw(drawn).line([*points, points[0]], fill=(255, 64, 64), width=max(2, drawn.width // 128))
    return drawn


def tiles(views: Views[Any], batch: Any) -> list[UInt8[Tensor, "b c h w"]]:
    """The views that a batch holds, one stack per view, as 8-bit images.

    Views whose batch is a question draw it themselves (``pictures``), with the answer beside it.
    """
    if hasattr(views, "pictures"):
        return views.pictures(batch)  # pyright: ignore[reportAttributeAccessIssue]
    match batch:
        case TwoViews() | PlacedViews() | LocatedViews():
            return [undo(views, batch.x1), undo(views, batch.x2)]
        case MultiCrop() | MaskedMultiCrop():
            return _crops(views, batch)
        case TiledImages() | Pieces():
            return _puzzles(views, batch)
        case Patches():
            return [side_by_side(batch.x, lambda x: undo(views, x))]
    beside = _besides(views, batch)
    if beside is None:
        raise TypeError(f"no picture is known for a batch of type {type(batch).__name__}")
    return [undo(views, batch.x), *beside]


def _crops(views: Views[Any], batch: MultiCrop | MaskedMultiCrop) -> list[UInt8[Tensor, "b c h w"]]:
    """All crops, the masked ones as the student sees them."""
    crops = [undo(views, crop) for crop in (*batch.large, *batch.small)]
    masks = batch.masked if isinstance(batch, MaskedMultiCrop) else ()
    return [greyed(crop, masked) for crop, masked in zip(crops, masks, strict=False)] + crops[len(masks) :]


def _besides(views: Views[Any], batch: Any) -> list[UInt8[Tensor, "b c h w"]] | None:
    """What is shown beside a batch's one view; None where it is of another kind."""
    match batch:
        case MaskedImages() | HiddenPixels() | QuarterSeen():
            return [veiled(undo(views, batch.x), batch)]
        case ColouredImages():
            return [in_colour(batch, getattr(views, "stride", 1))]
        case TurnedImages():  # which itself is shown upright
            return [undo(views, copy) for copy in turn(batch.x, batch.turns[:, -3:]).split(len(batch.x))]
        case MaskedPictures():  # and what the tokenizer sees, from 0 to 1
            seen = (255 * batch.picture.float().cpu().clamp(0, 1)).round().to(torch.uint8)
            return [greyed(undo(views, batch.x), batch.masked), seen]
        case Images() | Exemplars() | SeededImages():
            return []
    return None


def _puzzles(views: Views[Any], batch: TiledImages | Pieces) -> list[UInt8[Tensor, "b c h w"]]:
    """What is compared: four tiles with their whole, and with another; or the pieces that belong together, and a
    montage, which is all that is seen of them."""
    parts = batch.tiles if isinstance(batch, TiledImages) else batch.x
    four = side_by_side(parts.unflatten(1, (2, 2)), lambda x: undo(views, x))
    if isinstance(batch, TiledImages):
        whole = undo(views, batch.whole)
        return [four, whole, whole[torch.arange(len(whole)) + batch.other.cpu()]]
    if len(parts) < PIECES:
        return [four]
    return [four, undo(views, montage(parts.flatten(0, 1)[arrangement(batch.shuffle)]))]


def views_grid(
    views: Views[Any],
    source: Source,
    *,
    positions: Sequence[int] | None = None,
    epoch: int = 0,
    seed: int = 0,
    rows: int = 6,
    columns: int = 8,
    cell: int | None = None,
    paper: str | None = "white",
) -> Image.Image:
    """Each row one image: the original, then its views of ``epoch`` and the epochs after it until the row is full.

    Args:
        views: the pipeline; what it draws is exactly what training with this ``seed`` draws.
        source: where the images come from.
        positions: which images; unless given, ``rows`` of them chosen by key.
        epoch: the first epoch shown.
        columns: views per row, beside the original; at least one epoch's views are shown whole.
        cell: side of a tile in pixels; unless given, the largest view's, at least 64 and at most 160.
        paper: the colour between the tiles, None for none (transparent).
    """
    chosen = sample_positions(source, rows, seed=seed) if positions is None else np.asarray(positions, dtype=np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= len(source)):
        outside = int(chosen.min() if chosen.min() < 0 else chosen.max())
        raise DataError(
            f"position {outside} is outside the data, which hold {len(source)} images: 0 to {len(source) - 1}"
        )
    originals = read_originals(source, chosen)
    if not originals.images:
        raise DataError(f"none of the {len(chosen)} images chosen from {source.name} can be read")
    batches = [render_batch(views, originals, epoch=epoch, seed=seed)]
    shown = tiles(views, batches[0])
    for later in range(1, columns // len(shown)):
        batches.append(render_batch(views, originals, epoch=epoch + later, seed=seed))
        shown = shown + tiles(views, batches[-1])
    largest = max(int(stack.shape[-1]) for stack in shown)
    images = [as_image(image) for image in originals.images]
    if isinstance(batches[0], Exemplars):
        images = [outlined(image, [batch.corners[i] for batch in batches]) for i, image in enumerate(images)]
    rows_of_tiles = [[image, *(as_image(stack[i].numpy()) for stack in shown)] for i, image in enumerate(images)]
    sheet = _sheet(rows_of_tiles, cell or min(160, max(64, largest)), largest)
    if paper is None:
        return sheet
    grid = Image.new("RGB", sheet.size, paper)
    grid.paste(sheet, mask=sheet)
    return grid


def _sheet(rows: list[list[Image.Image]], side: int, largest: int) -> Image.Image:
    """Rows of tiles on nothing; the first column stands apart, and a small crop keeps its size beside a large one."""
    gap, apart = max(2, side // 32), max(6, side // 8)
    width = len(rows[0]) * (side + gap) - gap + apart
    sheet = Image.new("RGBA", (width, len(rows) * (side + gap) - gap))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            size = round(side * tile.width / largest) if x else side
            margin = (side - size) // 2
            left = x * (side + gap) + (apart if x else 0) + margin
            sheet.paste(thumbnail(tile, size), (left, y * (side + gap) + margin))
    rule = side + (gap + apart) // 2 - 1
    ImageDraw.Draw(sheet).line([(rule, 0), (rule, sheet.height)], fill=(128, 128, 128, 160))
    return sheet


def tiles_sheet(
    stacks: Sequence[UInt8[Tensor, "b c h w"]],
    side: int,
    *,
    across: int = 1,
    outlined: Bool[Tensor, "b h w"] | None = None,
) -> Image.Image:
    """One tile of each stack side by side for every image, ``across`` images in a row.

    The last stack's tiles get an outline around the pixels that are ``outlined``.
    """
    rims = None if outlined is None else rim(outlined, side).numpy()
    gap, apart = max(2, side // 32), max(8, side // 6)
    group = len(stacks) * (side + gap) - gap
    down = -(-len(stacks[0]) // across)
    sheet = Image.new("RGBA", (across * (group + apart) - apart, down * (side + gap) - gap))
    for i in range(len(stacks[0])):
        for j, stack in enumerate(stacks):
            left = i % across * (group + apart) + j * (side + gap)
            tile = thumbnail(as_image(stack[i].numpy()), side)
            if rims is not None and j == len(stacks) - 1:
                tile.paste(_RIM, mask=Image.fromarray(rims[i].astype(np.uint8) * 100))
            sheet.paste(tile, (left, i // across * (side + gap)))
    return sheet


def rim(region: Bool[Tensor, "b h w"], side: int) -> Bool[Tensor, "b s s"]:
    """The outermost pixels of each region, enlarged to ``side`` by ``side``, but for those at the image's border.

    >>> rim(torch.tensor([[[True, False], [True, False]]]), 4)[0, 0]
    tensor([False,  True, False, False])
    """
    large = torch.nn.functional.interpolate(region[:, None].float().cpu(), size=(side, side))
    outside = torch.nn.functional.max_pool2d(1 - large, kernel_size=3, stride=1, padding=1)
    return (large * outside)[:, 0] > 0
