"""Images apart in lightness and colour: what a network sees, and what it is to say of it.

Lightness stands three times over, so that an encoder for colour images takes it, and any that was trained so may be
evaluated on the plain view, which shows lightness too.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfsight.batches import ColouredImages
from selfsight.lab import to_lab
from selfsight.views.pipelines import Pipeline, PlainView
from selfsight.views.protocol import Plan
from selfsight.views.view import Normalise, View

LIGHTNESS = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Of lightness in shares of white: the paper's ``L - 50``, divided by 50."""


@dataclass(frozen=True)
class _Coloured(Pipeline[ColouredImages]):
    stride: int

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> ColouredImages:
        if x[0].shape[1] != 3:
            raise ValueError(
                f"images of {x[0].shape[1]} channels have no colour to say; red, green and blue are needed"
            )
        light, a, b = to_lab(*x[0].unbind(1))
        seen = (light / 50 - 1)[:, None].repeat(1, 3, 1, 1)
        return ColouredImages(seen, torch.stack([a, b], dim=1), index)

    def describe(self) -> str:
        """The view, and what becomes of it."""
        return f"{super().describe()}; lightness is seen, the colour of every {self.stride}th pixel is to be said"

    @property
    def plain(self) -> PlainView:
        """The evaluation view: lightness, as in training."""
        return replace(super().plain, grey=True, greyscale="lightness", normalise=LIGHTNESS)


def coloured(view: View, *, stride: int = 4) -> Pipeline[ColouredImages]:
    """One view of each image, as lightness and colour; of these a picture shows every ``stride``-th pixel.

    >>> from selfsight.keyed import Key
    >>> views = coloured(View(size=32))
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> batch = views.render(torch.full((2, 3, 40, 40), 255, dtype=torch.uint8), views.plan(key), key)
    >>> batch.x.shape, batch.ab.shape, round(float(batch.x.max()), 3)
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 2, 32, 32]), 1.0)
    """
    return _Coloured((replace(view, normalise=None),), stride)
