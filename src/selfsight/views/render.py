"""Rendering: the planned views of a whole batch, computed together on the images' device.

Views that differ only in what is drawn for each image are rendered in one go, as rows of one larger batch. Rows are
sorted so that each piece has one place of hue in its jitter and its blurred rows last: operations then run on
contiguous slices. On the CPU pieces are small enough for the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfsight.views import blur, colour, geometry
from selfsight.views.protocol import Cuts
from selfsight.views.view import HUE, Boxes, Colours, Normalise, View, boxes, colours

_PIECE = 400_000
"""Floats of a piece on the CPU, about 130 views of 32 px: larger ones leave the cache, smaller ones waste calls."""

_LARGE = 128**2
"""Pixels of a view from which on the CPU its planes are dealt with one by one: fewer passes, more calls."""

Take = Callable[[Int[Tensor, " n"]], Float[Tensor, "c n s s"]]
"""Gives cropped rows, in [0, 1]; rows are counted over the views that are rendered together."""


class _Piece(NamedTuple):
    """Rows ``start:stop`` of the sorted batch: hue at one place (4: no jitter), blurred from row ``blurred`` on."""

    start: int
    stop: int
    hue_at: int
    blurred: int


@torch.no_grad()
def render(
    images: UInt8[Tensor, "b c h w"] | Cuts, views: Sequence[View], plans: Sequence[Float[Tensor, "b n"]]
) -> list[Float[Tensor, "b c s s"]]:
    """Renders ``views`` of whole images of one native size, or of their cuts (one stack for each size of crop).

    ``plans`` are read on the host: kept on the CPU they spare a synchronisation.
    """
    plans = [u.cpu() for u in plans]
    device = images.device if isinstance(images, Tensor) else images[0].device
    out: dict[int, Tensor] = {}
    with torch.autocast(device.type, enabled=False):
        for group in together(views):
            drawn = [colours(views[v], plans[v]) for v in group]
            if isinstance(images, Tensor):
                take = _from_whole(images, [views[v] for v in group], [plans[v] for v in group])
            else:
                take = _from_cuts(images, views, group)
            x = rendered(
                take, [views[v] for v in group], Colours._make(map(torch.cat, zip(*drawn, strict=True))), device
            )
            out |= zip(group, x.split(len(plans[0])), strict=True)
    return [out[v] for v in range(len(views))]


def together(views: Sequence[View]) -> list[list[int]]:
    """Which views are rendered in one go: those that differ in nothing but what is drawn for each image."""
    radius = next((view.blur.radius for view in views if view.blur), 0)
    threshold = next((view.solarise.threshold for view in views if view.solarise), 0.0)
    groups: dict[tuple[object, ...], list[int]] = {}
    for v, view in enumerate(views):
        like = (
            *(view.size, view.interpolation, view.scale is None, view.order, view.normalise, view.greyscale),
            view.blur.radius if view.blur else radius,
            view.solarise.threshold if view.solarise else threshold,
        )
        groups.setdefault(like, []).append(v)
    return list(groups.values())


def sizes(views: Sequence[View]) -> list[int]:
    """The crop sizes of ``views`` in order of first appearance: one stack of cuts each."""
    return list(dict.fromkeys(view.size for view in views))


def normalise_(x: Float[Tensor, "c n h w"], normalise: Normalise | None) -> Tensor:
    """``(x - mean) / std`` by channel, where there is anything to do."""
    if normalise is not None:
        for plane, mean, std in zip(x, *normalise.of(len(x)), strict=True):
            plane.sub_(mean).mul_(1 / std)
    return x


def _from_whole(images: UInt8[Tensor, "b c h w"], views: Sequence[View], plans: Sequence[Float[Tensor, "b n"]]) -> Take:
    """Rows out of whole images: the boxes are cut on the images' device."""
    height, width = images.shape[2:]
    drawn = [boxes(view, u, height, width) for view, u in zip(views, plans, strict=True)]
    columns = map(torch.cat, zip(*(box[:5] for box in drawn), strict=True))
    joined = Boxes._make([*columns, drawn[0].closed])

    def take(rows: Int[Tensor, " n"]) -> Tensor:
        box = joined.each(lambda field: field[rows].to(images.device, non_blocking=True))
        source = (rows % len(images)).to(images.device, non_blocking=True)
        return geometry.resample(images, source, box, views[0].size, views[0].interpolation)

    return take


def _from_cuts(stacks: Cuts, views: Sequence[View], group: Sequence[int]) -> Take:
    """Rows out of cuts: the boxes of one size lie in one stack, in the order of the pipeline's views."""
    size = views[group[0]].size
    stack = stacks[sizes(views).index(size)]
    mates = [v for v, view in enumerate(views) if view.size == size]
    place = torch.tensor([mates.index(v) for v in group])
    batch, count = stack.shape[:2]
    flat = stack.flatten(0, 1)

    def take(rows: Int[Tensor, " n"]) -> Tensor:
        source = (rows % batch) * count + place[rows // batch]
        if not _by_plane(flat):
            some = flat.index_select(0, source.to(flat.device, non_blocking=True))
            return some.transpose(0, 1).contiguous() * (1 / 255)
        x = torch.empty(flat.shape[1], len(rows), *flat.shape[2:])
        for k, row in enumerate(source.tolist()):
            x[:, k].copy_(flat[row]).mul_(1 / 255)
        return x

    return take


def rendered(take: Take, views: Sequence[View], drawn: Colours, device: torch.device) -> Float[Tensor, "r c s s"]:
    """The rows that ``take`` gives, in their colours and normalised; ``views`` agree in all that is not drawn."""
    view = views[0]
    radius = max((v.blur.radius for v in views if v.blur), default=0)
    threshold = max((v.solarise.threshold for v in views if v.solarise), default=0.0)
    hue_at = torch.where(drawn.order[:, 0] < 0, 4, (drawn.order == HUE).int().argmax(1))
    rows = torch.argsort(2 * hue_at + drawn.blur, stable=True)
    drawn = drawn.each(lambda field: field[rows])
    factors, order, sigma = (f.to(device, non_blocking=True) for f in (drawn.factors, drawn.order, drawn.sigma))
    most = _PIECE // (3 * view.size**2) if device.type == "cpu" else len(rows)
    out = None
    for piece in _pieces(hue_at[rows], drawn.blur, max(1, most)):
        here = slice(piece.start, piece.stop)
        x = take(rows[here])
        for step in view.order:
            match step:
                case "jitter" if piece.hue_at < 4 and _by_plane(x):
                    colour.jitter_each_(x, drawn.factors[here], drawn.order[here])
                case "jitter" if piece.hue_at < 4:
                    colour.jitter_(x, factors[here], order[here], piece.hue_at)
                case "grey":
                    colour.greyscale_(x, _where(drawn.grey[here], device), view.greyscale)
                case "blur" if piece.blurred < piece.stop:
                    blur.blur_(x[:, piece.blurred - piece.start :], sigma[piece.blurred : piece.stop], radius)
                case "solarise":
                    colour.solarise_(x, _where(drawn.solarise[here], device), threshold)
                case _:
                    pass
        if out is None:
            out = x.new_empty(len(rows), *x.shape[:1], *x.shape[2:])
        _lay(x, out, rows[here], view.normalise)
    assert out is not None
    return out


def _by_plane(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[-1] * x.shape[-2] >= _LARGE


def _lay(x: Float[Tensor, "c n s s"], out: Float[Tensor, "r c s s"], rows: Tensor, normalise: Normalise | None) -> None:
    """Normalises a piece and lays its samples at ``rows`` of ``out``."""
    if not _by_plane(x):
        out.index_copy_(
            0, rows.to(out.device, non_blocking=True), normalise_(x, normalise).transpose(0, 1).contiguous()
        )
        return
    mean, std = normalise.of(len(x)) if normalise else ((0.0,) * len(x), (1.0,) * len(x))
    shift = [torch.tensor(-m / s) for m, s in zip(mean, std, strict=True)]
    for k, row in enumerate(rows.tolist()):
        for plane, to, start, s in zip(x[:, k], out[row], shift, std, strict=True):
            torch.add(start, plane, alpha=1 / s, out=to)


def _pieces(hue_at: Int[Tensor, " r"], blurs: Tensor, most: int) -> Iterator[_Piece]:
    """Cuts the sorted rows into pieces of at most ``most`` rows with hue at one place."""
    start = 0
    for place in range(5):
        mine = hue_at == place
        stop = start + int(mine.sum())
        blurred = stop - int(blurs[start:stop].sum())
        count = -(-(stop - start) // most)
        for k in range(count):
            a, e = start + (stop - start) * k // count, start + (stop - start) * (k + 1) // count
            yield _Piece(a, e, place, min(max(a, blurred), e))
        start = stop


def _where(happens: Tensor, device: torch.device) -> Int[Tensor, " k"]:
    return happens.nonzero()[:, 0].to(device, non_blocking=True)
