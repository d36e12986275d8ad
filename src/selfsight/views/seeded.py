"""One view of each image with a seed of its own: for methods that need more noise than a plan can carry.

A discrete autoencoder draws a number for each code in each place, millions for one large image. The plan draws two
numbers for each sample, and the method makes the rest of them on the device, by a hash (``parts.gumbel``): so the noise
depends on seed, epoch and index alone, as all that is random does.
"""

from dataclasses import dataclass

from torch import Tensor

from selfsight.batches import SeededImages
from selfsight.keyed import Key, uniforms
from selfsight.views.pipelines import Pipeline
from selfsight.views.protocol import Plan
from selfsight.views.view import View


@dataclass(frozen=True)
class _SeededView(Pipeline[SeededImages]):
    def plan(self, key: Key) -> Plan:
        return {**super().plan(key), "seed": uniforms(key, "seed", 2)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> SeededImages:
        seed = (plan["seed"] * 2**24).long()  # the uniform numbers are multiples of 2⁻²⁴
        return SeededImages(x[0], seed.to(x[0].device, non_blocking=True), index)


def seeded_view(view: View) -> Pipeline[SeededImages]:
    """One view of each image and its seed.

    >>> import torch
    >>> views = seeded_view(View(size=32))
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> views.render(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), views.plan(key), key).seed.shape
    torch.Size([2, 2])
    """
    return _SeededView((view,))
