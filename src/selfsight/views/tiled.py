"""An image as its four tiles and as a whole of a tile's size: what counting compares.

Both come from one square: the middle of the image, where lenses split colours least, and of it a crop. The whole is
made smaller by one of four kernels, and most images are grey, so that neither the traces of a kernel nor fringes of
colour tell anything that tiles and whole could agree on. Kernel and grey are the same for the two images of a pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from selfsight.batches import TiledImages
from selfsight.keyed import Key, uniforms
from selfsight.views import colour
from selfsight.views.pipelines import Pipeline, PlainView
from selfsight.views.protocol import Cuts, Plan
from selfsight.views.render import normalise_
from selfsight.views.view import Normalise, View

Kernel = Literal["area", "bilinear", "bicubic", "lanczos"]
KERNELS: tuple[Kernel, ...] = ("area", "bilinear", "bicubic", "lanczos")

Image = TypeVar("Image", bound=Tensor)


def _bicubic(t: Tensor) -> Tensor:
    inner = (1.5 * t - 2.5) * t * t + 1
    outer = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, inner, torch.where(t < 2, outer, 0))


_SHAPES: dict[Kernel, Callable[[Tensor], Tensor]] = {
    "area": lambda t: (t < 0.5).double(),
    "bilinear": lambda t: (1 - t).clamp_min(0),
    "bicubic": _bicubic,
    "lanczos": lambda t: torch.where(t < 3, torch.sinc(t) * torch.sinc(t / 3), 0),
}
"""Of the distance in pixels of the smaller image, as Pillow has them (antialiased)."""


@lru_cache(maxsize=32)
def _halving(size: int, kernel: Kernel, device: torch.device) -> Float[Tensor, "s h"]:
    """The weights of an axis's pixels in each pixel of half as many."""
    pixels, centres = torch.arange(size).double() + 0.5, 2 * torch.arange(size // 2).double() + 1
    taps = _SHAPES[kernel]((pixels[:, None] - centres).abs() / 2)
    return (taps / taps.sum(dim=0)).float().to(device)


def halve(
    x: Float[Tensor, "b c s s"], which: Int[Tensor, " b"], kernels: Sequence[Kernel] = KERNELS
) -> Float[Tensor, "b c h h"]:
    """Each image in half its size, by the kernel of ``kernels`` that ``which`` (on the CPU) says; values in [0, 1].

    >>> halve(torch.tensor([[[[0.0, 0.5], [0.5, 1.0]]]]), torch.tensor([0]))
    tensor([[[[0.5000]]]])
    """
    size = x.shape[-1]
    out = x.new_empty(*x.shape[:2], size // 2, size // 2)
    for k, kernel in enumerate(kernels):
        rows = (which == k).nonzero()[:, 0].to(x.device)
        if len(rows):
            taps = _halving(size, kernel, x.device)
            out.index_copy_(0, rows, taps.T @ x.index_select(0, rows) @ taps)
    return out.clamp_(0, 1)


def middle(image: Image) -> Image:
    """The largest square in the middle of images ``... h w``."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]  # pyright: ignore[reportReturnType]


def paired(count: int) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """For each of ``count`` rows the first row of its pair, and how much further on its partner stands.

    Rows 0 and 1 are a pair, 2 and 3, and so on; where the number is odd the last row joins the pair before it.

    >>> paired(5)
    (tensor([0, 0, 2, 2, 2]), tensor([ 1, -1,  1, -1, -2]))
    """
    row = torch.arange(count)
    first = 2 * torch.minimum(row // 2, torch.tensor(max(count // 2 - 1, 0)))
    further = torch.where(row == first, 1, first - row)
    return first, further if count > 1 else torch.zeros_like(row)


@dataclass(frozen=True)
class Tiled(Pipeline[TiledImages]):
    """``tiled`` builds it; ``views`` has one view, of the whole crop, that is neither grey nor normalised."""

    grey: float
    kernels: tuple[Kernel, ...]
    normalise: Normalise | None

    def plan(self, key: Key) -> Plan:
        return {**super().plan(key), "pair": uniforms(key, "pair", 2)}

    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[Shaped[Tensor, "b ..."]]:
        return super().cut([middle(image) for image in images], plan)

    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> TiledImages:
        return super().render(middle(images) if isinstance(images, Tensor) else images, plan, key)

    @torch.no_grad()
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> TiledImages:
        image = x[0]
        first, other = paired(len(image))
        drawn = plan["pair"].cpu()[first]
        colour.greyscale_(image.transpose(0, 1), (drawn[:, 0] < self.grey).nonzero()[:, 0].to(image.device))
        with torch.autocast(image.device.type, enabled=False):
            whole = halve(image, (drawn[:, 1].double() * len(self.kernels)).long(), self.kernels)
        for part in (image, whole):
            normalise_(part.transpose(0, 1), self.normalise)
        side = whole.shape[-1]
        tiles = image.unflatten(3, (2, side)).unflatten(2, (2, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return TiledImages(whole, tiles.contiguous(), other.to(image.device, non_blocking=True), index)

    def describe(self) -> str:
        """The crop, and what is made of it."""
        how = f"downsampled by {' or '.join(self.kernels)}"
        grey = f"; a pair is grey {self.grey:g}" if self.grey else ""
        after = ", normalise" if self.normalise else ""
        return f"{super().describe()}, of the middle square; as 2 x 2 tiles and {how}{grey}{after}"

    @property
    def plain(self) -> PlainView:
        """The evaluation view: as large as the crop, in colour, normalised as the tiles are."""
        return replace(super().plain, normalise=self.normalise)


def tiled(view: View, *, grey: float = 0.67, kernels: Sequence[Kernel] = KERNELS) -> Tiled:
    """Four tiles of each image and the whole of it in their size, in pairs.

    Args:
        view: the crop, of the middle square of the image. Its ``normalise`` comes last.
        grey: the share of pairs that are grey.
        kernels: one of them, drawn for each pair, makes the whole smaller.

    >>> views = tiled(View(size=32, scale=(0.7, 0.7), ratio=(1, 1)))
    >>> key = Key(seed=0, epoch=torch.zeros(2, dtype=torch.long), index=torch.arange(2))
    >>> batch = views.render(torch.zeros(2, 3, 40, 60, dtype=torch.uint8), views.plan(key), key)
    >>> batch.whole.shape, batch.tiles.shape
    (torch.Size([2, 3, 16, 16]), torch.Size([2, 4, 3, 16, 16]))
    """
    if view.size % 2:
        raise ValueError(f"an image of {view.size} px has no four equal tiles; take {view.size + 1} px")
    if not 0 <= grey <= 1:
        raise ValueError(f"--grey is {grey:g}; it is a share of the images, from 0 to 1")
    if not kernels or view.grey:
        raise ValueError("tiles need at least one kernel, and a view that leaves grey to the pairs")
    return Tiled((replace(view, normalise=None),), grey, tuple(kernels), view.normalise)
