"""What a lens's fringes tell of the exemplar that a patch is: little, once colours and places are drawn anew.

Every image has a lens of its own and a patch has its place in it, so fringes could name the class. They cannot be taken
away, since a patch shows what its image shows; the controls say how much each transform takes of what they tell.
"""

from typing import Any

import torch
from shortcuts import fringes, through_a_lens, told
from torch import Tensor

from selfsight.keyed import Key
from selfsight.views.exemplars import exemplars

CLASSES, DRAWS = 64, 40
STILL: dict[str, Any] = {"colours": False, "translation": 0.0, "scale": (1.0, 1.0), "degrees": 0.0}


def named(more: Tensor, **how: Any) -> float:
    """How often the fringes of a patch tell which of the images it is of."""
    images = (255 * through_a_lens(CLASSES, 96, more)).round().to(torch.uint8)
    views, rows = exemplars(32, **how), torch.arange(CLASSES)
    keys = [Key(0, torch.full((CLASSES,), epoch), rows) for epoch in range(DRAWS)]
    seen = torch.cat([fringes(views.render(images, views.plan(key), key).x) for key in keys])
    return told(seen, rows.repeat(DRAWS))


def test_chromatic_aberration_tells_little_of_the_class() -> None:
    lenses = 0.02 + 0.06 * torch.rand(CLASSES, generator=torch.Generator().manual_seed(1))
    assert named(lenses, **STILL) > 0.95
    moved, whole = named(lenses, colours=False), named(lenses)
    assert 0.5 < moved < 0.75  # moving, scaling and turning alone
    assert whole < 0.3, (moved, whole)
    without = named(torch.zeros(CLASSES))  # what these numbers say of the recoloured texture
    assert without < 0.1
    assert whole - without < (moved - without) / 3
