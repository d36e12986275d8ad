"""One view of each image and the quarter turns by which it is to be turned: all four of them, or one by lot.

The image is decoded, cut and rendered once. What comes with the batch are the turns, integers by key; the method turns
on the device (``parts.turns``), where a turned copy is a copy in memory and nothing more.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selfsight.batches import TurnedImages
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import View

Copies = Literal[4, 1]


@dataclass(frozen=True)
class TurnedView(Pipeline[TurnedImages]):
    """``turned_view`` builds it."""

    copies: Copies

    def plan(self, key: Key) -> Plan:
        """The view's numbers, and where there is one copy the number that chooses its turn."""
        drawn = super().plan(key)
        return drawn if self.copies == 4 else {**drawn, "turn": uniforms(key, "turn", 1)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> TurnedImages:
        every = torch.arange(4).expand(len(x[0]), 4)
        turns = every if self.copies == 4 else torch.floor(plan["turn"] * 4).long()
        return TurnedImages(x[0], turns.to(x[0].device, non_blocking=True), index)

    def describe(self) -> str:
        """The view, and how it is turned."""
        how = "in all four quarter turns" if self.copies == 4 else "by one of four quarter turns"
        return f"{super().describe()}; turned {how}"


def turned_view(view: View, *, copies: Copies = 4) -> TurnedView:
    """One view of each image and its turns: 0, 1, 2 and 3, or one of these by key.

    >>> views = turned_view(View(size=32), copies=1)
    >>> key = Key(seed=0, epoch=torch.zeros(4, dtype=torch.long), index=torch.arange(4))
    >>> views.render(torch.zeros(4, 3, 40, 40, dtype=torch.uint8), views.plan(key), key).turns.shape
    torch.Size([4, 1])
    """
    if copies not in (1, 4):
        raise ValueError(f"--copies is {copies}; an image is turned in all 4 ways or in 1 of them")
    return TurnedView((view,), copies)
