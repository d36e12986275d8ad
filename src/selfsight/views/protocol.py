"""What a pipeline of views is: a plan (what is random), a cut (worker side, one large image), a rendering (batched)."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from jaxtyping import Shaped, UInt8
from torch import Tensor

from selfsight.batches import Images
from selfsight.keyed import Key

B_co = TypeVar("B_co", covariant=True)

Plan: TypeAlias = Mapping[str, Tensor]
"""Size-free numbers of a batch, each tensor with leading axis ``b``: slices and stacks like one."""

Cuts: TypeAlias = Sequence[Shaped[Tensor, "b ..."]]
"""Planned boxes, cut and resized: one stack ``b v c s s`` of uint8 per crop size, its views in the pipeline's order.

A pipeline may add, after the stacks, what its batch needs to know of images that stay behind: where a view lies.
"""


@runtime_checkable
class Views(Protocol[B_co]):
    """A pipeline of views that yields batches of one type."""

    def plan(self, key: Key) -> Plan:
        """Draws all random numbers of the batch ``key`` (on the CPU; a pure function of the key)."""
        ...

    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[Shaped[Tensor, "b ..."]]:
        """Cuts and resizes the planned boxes of some images, of any sizes: ``Cuts``."""
        ...

    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> B_co:
        """Renders a batch where ``images`` lie: whole images of one native size, or what ``cut`` made, stacked."""
        ...

    @property
    def plain(self) -> "Views[Images]":
        """The evaluation view that goes with this pipeline: no randomness, same size and normalisation."""
        ...
