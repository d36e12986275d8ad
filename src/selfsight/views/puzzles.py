"""Jigsaw puzzles: nine tiles of an image, each from a random place in its cell, and which permutation of them is shown.

All tiles of a puzzle have the same colours: colour is dropped, or green against magenta projected out, on the whole
image, before the tiles are cut. Only a puzzle that keeps its colours has its channels moved apart, tile by tile: in a
grey one that would draw the very fringes that grey takes away.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfsight.batches import Puzzles
from selfsight.keyed import Key, uniforms
from selfsight.views import colour, tiles
from selfsight.views.pipelines import Pipeline, PlainView
from selfsight.views.protocol import Plan
from selfsight.views.tiles import SIDE
from selfsight.views.view import Normalise, View

_PLACE = 2
_OWN = _PLACE + 2 * 3
"""Numbers that a tile draws: its place in the cell, and how far each of three channels is moved, along two axes."""


@dataclass(frozen=True)
class PuzzleGrid(Pipeline[Puzzles]):
    """``puzzles`` builds it; ``views`` has one view, of the whole crop, that is not normalised."""

    permutations: Int[Tensor, "n 9"] = field(compare=False)
    tile: int
    spread: int
    grey: float
    project: float
    normal: bool
    count: int
    evaluated: Normalise | None

    @property
    def cell(self) -> int:
        """Side of a cell, out of which a tile is cut."""
        return self.views[0].size // SIDE

    def plan(self, key: Key) -> Plan:
        drawn = {
            "colour": uniforms(key, "colour", 2),
            "tiles": uniforms(key, "tiles", SIDE**2 * _OWN),
            "permutation": uniforms(key, "permutation", self.count),
        }
        return {**super().plan(key), **drawn}

    @torch.no_grad()
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> Puzzles:
        image, u = x[0], plan["colour"].cpu()
        grey = u[:, 0] < self.grey
        projected = ~grey & (u[:, 1] < self.project)
        if image.shape[1] == 3:
            colour.greyscale_(image.transpose(0, 1), _rows(grey, image))
            rows = _rows(projected, image)
            image[rows] = tiles.project_(image[rows])
        top, left = self._corners(plan["tiles"].cpu(), image.shape[1], ~(grey | projected))
        cut = tiles.take(image, top, left, self.tile)
        if self.normal:
            tiles.normalise_(cut, joint=False)
        label = (plan["permutation"].double() * len(self.permutations)).long()
        return Puzzles(cut, label.to(image.device), index)

    def _corners(
        self, u: Float[Tensor, "b draws"], channels: int, coloured: Tensor
    ) -> tuple[Int[Tensor, "b 9 k"], Int[Tensor, "b 9 k"]]:
        """Each tile's corner, for each channel its own; a tile stays in its cell, whichever way its channels go."""
        place, own = u.double().unflatten(1, (SIDE**2, _OWN)).split([_PLACE, _OWN - _PLACE], dim=2)
        spread = self.spread * (coloured & (channels == 3)).long()[:, None, None]
        room = self.cell - self.tile - spread
        base = (place * (room + 1)).long()[:, :, None]
        moved = (own.unflatten(2, (3, 2)) * (spread[..., None] + 1)).long()
        cells = torch.arange(SIDE**2)
        start = torch.stack([cells // SIDE, cells % SIDE], dim=1)[:, None] * self.cell
        corner = start + base + (moved if channels == 3 else 0)
        return corner[..., 0], corner[..., 1]

    def pictures(self, batch: Puzzles) -> list[UInt8[Tensor, "b c s s"]]:
        """Of each image one puzzle as the network sees it, and solved."""
        x, gap = tiles.shown(batch.x), max(1, self.cell - self.tile)
        order = self.permutations[batch.label[:, 0].cpu()]
        shuffled = x[torch.arange(len(x))[:, None], order]
        return [tiles.mosaic(part, gap) for part in (shuffled, x)]

    def describe(self) -> str:
        """The crop, its tiles and their colours, and the permutations."""
        cut = f"{SIDE} x {SIDE} cells of {self.cell} px, a tile of {self.tile} px of each"
        colours = f", all of them grey {self.grey:g}" if self.grey else ""
        colours += f", else projected {self.project:g}" if self.project else ""
        colours += f", else channels up to {self.spread} px apart" if self.spread else ""
        normal = ", each normalised by itself" if self.normal else ""
        each = f"{self.count} of {len(self.permutations)} permutations"
        return f"{super().describe()}; {cut}{colours}{normal}; {each}"

    @property
    def plain(self) -> PlainView:
        """The evaluation view: as large as the crop and normalised, grey where all puzzles are."""
        return replace(super().plain, normalise=self.evaluated, grey=self.grey >= 1)


def _rows(happens: Tensor, image: Tensor) -> Int[Tensor, " k"]:
    return happens.nonzero()[:, 0].to(image.device)


def puzzles(
    crop: View,
    permutations: Int[Tensor, "n 9"],
    *,
    tile: int,
    spread: int = 0,
    grey: float = 0.3,
    project: float = 0.0,
    normal: bool = True,
    count: int = 1,
) -> PuzzleGrid:
    """Puzzles of nine tiles of ``crop``, whose ``normalise`` is for the evaluation view.

    Args:
        crop: the view that is cut into cells, a third of its side each.
        permutations: one of them is drawn for each puzzle.
        tile: side of a tile in pixels, cut at random out of its cell.
        spread: by how many pixels a tile's colour channels are moved apart at most, in puzzles that keep their colours.
        grey: the share of puzzles that are grey as a whole.
        project: the share of the others whose green against magenta is projected out.
        normal: whether each tile's mean and deviation are taken out, channel by channel.
        count: puzzles of each image: permutations of the same tiles.

    >>> views = puzzles(View(size=32), torch.tensor([[8, 7, 6, 5, 4, 3, 2, 1, 0]]), tile=8)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> batch = views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> batch.x.shape, batch.label.shape
    (torch.Size([2, 9, 3, 8, 8]), torch.Size([2, 1]))
    """
    cell = crop.size // SIDE
    if not 1 <= tile <= cell - spread or spread < 0:
        raise ValueError(
            f"tiles of {tile} px, with channels up to {spread} px apart, do not fit into cells of {cell} px; "
            f"take a --tile of 1 to {cell - max(spread, 0)}"
        )
    for name, share in (("grey", grey), ("project", project)):
        if not 0 <= share <= 1:
            raise ValueError(f"--{name} is {share:g}; it is a share of the puzzles, from 0 to 1")
    if count < 1:
        raise ValueError(f"--puzzles is {count}; each image needs at least 1")
    whole = replace(crop, normalise=None)
    return PuzzleGrid((whole,), permutations, tile, spread, grey, project, normal, count, crop.normalise)
