"""Pairs of patches from a grid of three by three: where does the second lie, as seen from the first?

The patches stand half a patch apart and are jittered, so that no edge goes on from one into the other. Each is changed
by numbers of its own: made coarse, its colours dropped or projected, its mean and scale taken out.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from selfsight.batches import PatchPairs
from selfsight.keyed import Key, uniforms
from selfsight.views import tiles
from selfsight.views.pipelines import Pipeline, PlainView
from selfsight.views.protocol import Plan
from selfsight.views.tiles import SIDE
from selfsight.views.view import Normalise, View

Colour = Literal["drop", "project", "keep"]
Which = Literal["centre", "all"]

_DRAWS = 2 + tiles.COARSE_DRAWS + tiles.DROP_DRAWS
_GAP_SHOWN = 2


def neighbours(which: Which) -> Int[Tensor, "3 pairs"]:
    """First, second and label of each pair of the grid, ``centre``: its eight; ``all``: all that touch, both orders.

    Labels count the eight places round a patch in reading order: a pair's and its reverse's add up to seven.

    >>> neighbours("centre").tolist()[1:]
    [[0, 1, 2, 3, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7]]
    """
    found: list[tuple[int, int, int]] = []
    for first in range(SIDE**2):
        for second in range(SIDE**2):
            down, right = second // SIDE - first // SIDE, second % SIDE - first % SIDE
            place = 3 * (down + 1) + right + 1
            if first != second and max(abs(down), abs(right)) == 1 and (which == "all" or first == SIDE**2 // 2):
                found.append((first, second, place - (place > 4)))
    return torch.tensor(found).T.contiguous()


@dataclass(frozen=True)
class PairGrid(Pipeline[PatchPairs]):
    """``patch_pairs`` builds it; ``views`` has one view, of the whole crop, that is not normalised."""

    patch: int
    gap: int
    jitter: int
    colour: Colour
    coarse: float
    normal: bool
    which: Which
    evaluated: Normalise | None

    def plan(self, key: Key) -> Plan:
        return {**super().plan(key), "patches": uniforms(key, "patches", SIDE**2 * _DRAWS)}

    @torch.no_grad()
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> PatchPairs:
        image, u = x[0], plan["patches"].cpu().unflatten(1, (SIDE**2, _DRAWS))
        shift, coarse, colour = u.split([2, tiles.COARSE_DRAWS, tiles.DROP_DRAWS], dim=2)
        place, step = torch.arange(SIDE**2), self.patch + self.gap
        corner = torch.stack([place // SIDE, place % SIDE], dim=1) * step + self._margin
        corner = corner + (shift.double() * (2 * self.jitter + 1)).long() - self.jitter
        patches = tiles.take(image, corner[:, :, :1], corner[:, :, 1:], self.patch).flatten(0, 1)
        with torch.autocast(image.device.type, enabled=False):
            tiles.coarsen_(patches, coarse.flatten(0, 1), self.coarse)
        if self.colour == "drop":
            tiles.drop_(patches, colour.flatten(0, 1))
        elif self.colour == "project":
            tiles.project_(patches)
        if self.normal:
            tiles.normalise_(patches, joint=True)
        first, second, label = neighbours(self.which).to(image.device)[:, None].expand(-1, len(image), -1)
        return PatchPairs(patches.unflatten(0, (len(image), -1)), first, second, label, index)

    @property
    def _margin(self) -> int:
        """Pixels round the grid, which the jitter may use."""
        return (self.views[0].size - SIDE * self.patch - (SIDE - 1) * self.gap) // 2

    def pictures(self, batch: PatchPairs) -> list[UInt8[Tensor, "b c s s"]]:
        """Of each image one pair: the question, first and second patch side by side, and the answer, both in place."""
        x = tiles.shown(batch.x)
        rows = torch.arange(len(x))
        pair = batch.index.cpu() % batch.label.shape[1]
        chosen = (part.cpu()[rows, pair] for part in (batch.first, batch.second, batch.label))
        first, second, label = chosen
        question, answer = torch.ones_like(x), torch.full_like(x, 0.9)
        question[:, 3], question[:, 5] = x[rows, first], x[rows, second]
        answer[:, 4] = x[rows, first]
        answer[rows, label + (label >= 4)] = x[rows, second]
        return [tiles.mosaic(part, _GAP_SHOWN) for part in (question, answer)]

    def describe(self) -> str:
        """The crop, the grid, and what happens to each patch."""
        grid = f"{SIDE} x {SIDE} patches of {self.patch} px, {self.gap} px apart, jittered by up to {self.jitter} px"
        colour = {"drop": ", two colours of each dropped", "project": ", green against magenta projected out"}
        coarse = f", coarse {self.coarse:g}" if self.coarse else ""
        normal = ", each normalised by itself" if self.normal else ""
        return f"{super().describe()}; {grid}{coarse}{colour.get(self.colour, '')}{normal}"

    @property
    def plain(self) -> PlainView:
        """The evaluation view: as large as the crop, in colour, normalised."""
        return replace(super().plain, normalise=self.evaluated)


def patch_pairs(
    crop: View,
    *,
    patch: int,
    gap: int,
    jitter: int,
    colour: Colour = "drop",
    coarse: float = 0.33,
    normal: bool = True,
    which: Which = "centre",
) -> PairGrid:
    """Pairs of neighbours among three by three patches of ``crop``, whose ``normalise`` is for the evaluation view.

    Args:
        crop: the view that is cut into patches.
        patch: side of a patch in pixels.
        gap: pixels between neighbours, before the jitter.
        jitter: by how many pixels each patch is moved at most, along each axis.
        colour: ``drop`` two of each patch's three channels, ``project`` green against magenta out, or ``keep`` all.
        coarse: the share of patches that are made smaller and enlarged again.
        normal: whether each patch's mean and scale are taken out.
        which: the pairs of the centre with its eight neighbours, or all.

    >>> views = patch_pairs(View(size=32), patch=8, gap=3, jitter=1)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> batch = views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> batch.x.shape, batch.label.shape
    (torch.Size([2, 9, 3, 8, 8]), torch.Size([2, 8]))
    """
    if patch < 1 or gap < 0 or jitter < 0:
        raise ValueError(f"a patch has at least 1 px, its gap and its jitter at least 0, not {patch}, {gap}, {jitter}")
    need = SIDE * patch + (SIDE - 1) * gap + 2 * jitter
    if need > crop.size:
        raise ValueError(
            f"three patches of {patch} px, {gap} px apart and jittered by {jitter}, take {need} px of {crop.size}; "
            "take a smaller --patch, --gap or --jitter"
        )
    if not 0 <= coarse <= 1:
        raise ValueError(f"--coarse is {coarse:g}; it is a share of the patches, from 0 to 1")
    whole = replace(crop, normalise=None)
    return PairGrid((whole,), patch, gap, jitter, colour, coarse, normal, which, crop.normalise)
