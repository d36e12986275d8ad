"""One view of each image, and by lot the quarter of it that an encoder gets to see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.batches import QuarterSeen
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import View


@dataclass(frozen=True)
class QuarterView(Pipeline[QuarterSeen]):
    """``quarter_view`` builds it."""

    def plan(self, key: Key) -> Plan:
        return {**super().plan(key), "quarter": uniforms(key, "quarter", 1)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> QuarterSeen:
        quarter = torch.floor(plan["quarter"][:, 0] * 4).long()
        return QuarterSeen(x[0], quarter.to(x[0].device), index)

    def describe(self) -> str:
        """The view, and how much of it is seen."""
        return f"{super().describe()}; a quarter of {self.views[0].size // 2} px is seen, one of four"


def quarter_view(view: View) -> QuarterView:
    """One view of each image and one of its four quarters.

    >>> views = quarter_view(View(size=32))
    >>> key = Key(seed=0, epoch=torch.zeros(4, dtype=torch.long), index=torch.arange(4))
    >>> views.render(torch.zeros(4, 3, 40, 40, dtype=torch.uint8), views.plan(key), key).quarter
    tensor([3, 0, 3, 0])
    """
    if view.size % 2:
        raise ValueError(f"a view of {view.size} px has no quarters of whole pixels; take an even size")
    return QuarterView((view,))
