"""BEiT's view: one crop rendered twice, for the encoder and for the tokenizer, and a blockwise mask of its patches."""

from dataclasses import dataclass

from torch import Tensor

from selfsight.batches import MaskedPictures
from selfsight.keyed import Key, uniforms
from selfsight.views.blocks import DRAWS, block_masks
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import DRAWS as VIEW_DRAWS
from selfsight.views.view import View


@dataclass(frozen=True)
class _MaskedPictures(Pipeline[MaskedPictures]):
    patch: int
    budget: int
    smallest: int

    @property
    def grid(self) -> int:
        return self.views[0].size // self.patch

    def plan(self, key: Key) -> Plan:
        """One view's numbers for both renderings, and the mask's."""
        drawn = uniforms(key, "view0", VIEW_DRAWS)
        return {"view0": drawn, "view1": drawn, "mask": uniforms(key, "mask", DRAWS)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> MaskedPictures:
        masks = block_masks(plan["mask"].cpu(), self.grid, self.budget, smallest=self.smallest)
        return MaskedPictures(x[0], x[1], masks.flatten(1).to(x[0].device, non_blocking=True), index)

    def describe(self) -> str:
        mask = f"at most {self.budget} of {self.grid**2} patches of {self.patch} px hidden in blocks"
        return f"{self.views[0].describe()}; {mask}\nthe same crop for the tokenizer: {self.views[1].describe()}"


def _crop_of(view: View) -> tuple[object, ...]:
    return view.scale, view.ratio, view.of_square, view.flip, view.jitter


def masked_pictures(
    view: View, picture: View, *, patch: int, budget: int, smallest: int = 16
) -> Pipeline[MaskedPictures]:
    """One crop of each image as ``view`` and as ``picture``, which are drawn by the same numbers, and a mask.

    Both show the same rectangle, flip and jitter, each at its own size and in its own normalisation. At most
    ``budget`` patches of the first are hidden, in blocks of at least ``smallest``.

    >>> import torch
    >>> views = masked_pictures(View(size=32), View(size=16, normalise=None), patch=4, budget=26, smallest=4)
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> batch = views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> batch.x.shape, batch.picture.shape, batch.masked.shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 16, 16]), torch.Size([2, 64]))
    """
    if view.size % patch:
        raise ValueError(f"patch {patch} does not divide a view of {view.size} px; take a divisor of {view.size}")
    if _crop_of(view) != _crop_of(picture):
        raise ValueError(
            "encoder and tokenizer must be shown the same crop: their views differ in crop, flip or jitter"
        )
    patches = (view.size // patch) ** 2
    if not 0 < budget < patches:
        raise ValueError(f"{budget} of {patches} patches cannot be hidden: some must be, and some must stay visible")
    return _MaskedPictures((view, picture), patch, budget, smallest)
