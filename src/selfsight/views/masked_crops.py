"""iBOT's views: crops of two sizes, and a mask of the patches for each large one, which may be empty."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfsight.batches import MaskedMultiCrop
from selfsight.keyed import Key, uniforms
from selfsight.views.blocks import DRAWS, block_masks
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import View

MaskShape = Literal["block", "random"]


@dataclass(frozen=True)
class CropMask:
    """How large crops are masked (bytedance/ibot, ``loader.py``): with probability ``share``, else not at all.

    The ratio of hidden patches is uniform between ``ratio - spread`` and ``ratio + spread``. Blocks as BEiT's, of at
    least a ninth of the grid, often hide a little less; ``random`` patches are so many, rounded down.
    """

    share: float = 0.5
    ratio: float = 0.3
    spread: float = 0.2
    shape: MaskShape = "block"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of masked crops must lie in [0, 1], not {self.share:g}")
        if not 0 <= self.spread <= self.ratio or self.ratio + self.spread >= 1:
            raise ValueError(
                f"mask ratio {self.ratio:g} with spread {self.spread:g} must stay within 0 and 1; take a smaller spread"
            )

    def draws(self, grid: int) -> int:
        """Uniform numbers of one mask."""
        return 2 + (DRAWS if self.shape == "block" else grid**2)

    def masks(self, u: Float[Tensor, "b m"], grid: int) -> Bool[Tensor, "b n"]:
        """What the uniform numbers mean on ``grid`` by ``grid`` patches, in row-major order."""
        ratio = self.ratio + self.spread * (2 * u[:, 1].double() - 1)
        budget = torch.where(u[:, 0] < self.share, ratio * grid**2, 0.0)
        if self.shape == "block":
            return block_masks(u[:, 2:], grid, budget, smallest=(grid // 3) ** 2).flatten(1)
        rank = u[:, 2:].argsort(dim=1, stable=True).argsort(dim=1)
        return rank < budget.floor()[:, None]

    def describe(self) -> str:
        """The mask in words."""
        low, high = self.ratio - self.spread, self.ratio + self.spread
        return f"{low:.0%}-{high:.0%} of the patches hidden ({self.shape}) in {self.share:.0%} of the large crops"


@dataclass(frozen=True)
class _MaskedCrops(Pipeline[MaskedMultiCrop]):
    large: int
    patch: int
    mask: CropMask

    @property
    def grid(self) -> int:
        return self.views[0].size // self.patch

    def plan(self, key: Key) -> Plan:
        draws = self.mask.draws(self.grid)
        return {**super().plan(key), **{f"mask{v}": uniforms(key, f"mask{v}", draws) for v in range(self.large)}}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> MaskedMultiCrop:
        masked = [self.mask.masks(plan[f"mask{v}"].cpu(), self.grid) for v in range(self.large)]
        there = tuple(m.to(x[0].device, non_blocking=True) for m in masked)
        return MaskedMultiCrop(tuple(x[: self.large]), tuple(x[self.large :]), there, index)

    def describe(self) -> str:
        return f"{super().describe()}\n{self.mask.describe()}"


def masked_crops(large: list[View], small: list[View], *, patch: int, mask: CropMask) -> Pipeline[MaskedMultiCrop]:
    """Crops of two sizes as ``multi_crop`` has them; each large one with a mask of its patches.

    >>> views = masked_crops([View(size=32)] * 2, [View(size=16)], patch=4, mask=CropMask(share=1.0))
    >>> key = Key(seed=0, epoch=torch.zeros(3, dtype=torch.long), index=torch.arange(3))
    >>> batch = views.render(torch.zeros(3, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> [m.shape for m in batch.masked], all(bool(m.any(dim=1).all()) for m in batch.masked)
    ([torch.Size([3, 64]), torch.Size([3, 64])], True)
    """
    if len(large) < 2:
        raise ValueError(f"crops are compared: there must be at least two large ones, not {len(large)}")
    sizes = {view.size for view in (*large, *small)}
    if any(size % patch for size in sizes):
        raise ValueError(f"patch {patch} does not divide crops of {sorted(sizes)} px; choose another size")
    return _MaskedCrops((*large, *small), len(large), patch, mask)
