"""Pipelines of views, one for each type of batch: plan by key, cut in a worker, render on the device.

Each view draws from a stream of its own (``view0``, ``view1``...), so what sample 17 looks like in epoch 3 depends on
the seed and on nothing else. All views of one size are rendered in one go.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from selfsight.batches import Images, MaskedImages, MultiCrop, TwoViews
from selfsight.keyed import Key, uniforms
from selfsight.sizes import SMALL
from selfsight.views import colour, geometry
from selfsight.views.protocol import Cuts, Plan, Views
from selfsight.views.render import normalise_, render, sizes
from selfsight.views.view import DRAWS, Greyscale, Interpolation, Normalise, View, boxes

B = TypeVar("B")


@dataclass(frozen=True)
class Pipeline(ABC, Generic[B]):
    """Views of each image, and how they make up a batch."""

    views: tuple[View, ...]

    @abstractmethod
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> B:
        """The batch of the rendered views ``x``, in the order of ``views``."""

    def plan(self, key: Key) -> Plan:
        """Each view's uniform numbers, ``view0``, ``view1``..., and the mask's where the batch has one."""
        return {f"view{v}": uniforms(key, f"view{v}", DRAWS) for v in range(len(self.views))}

    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[Shaped[Tensor, "b ..."]]:
        """Crops, flips and resizes each image for all views: one stack for each size of crop."""
        height, width = (torch.tensor([image.shape[axis] for image in images]) for axis in (1, 2))
        counts = Counter(view.size for view in self.views)
        stacks = {s: torch.empty(len(images), counts[s], len(images[0]), s, s, dtype=torch.uint8) for s in counts}
        for v, view in enumerate(self.views):
            place = sum(other.size == view.size for other in self.views[:v])
            box = boxes(view, plan[f"view{v}"], height, width)
            for i, image in enumerate(images):
                own = box.each(lambda field, i=i: field[i : i + 1])
                stacks[view.size][i, place] = geometry.cut(image, own, view.size, view.interpolation)
        return [stacks[size] for size in sizes(self.views)]

    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> B:
        """Renders the batch where ``images`` lie. Keep ``plan`` on the CPU: it is read there to sort the work."""
        x = render(images, self.views, [plan[f"view{v}"] for v in range(len(self.views))])
        return self.assemble(x, plan, key.index.to(x[0].device, non_blocking=True))

    def describe(self) -> str:
        """One line for each view."""
        return "\n".join(f"view {v + 1}: {view.describe()}" for v, view in enumerate(self.views))

    @property
    def plain(self) -> "PlainView":
        """The evaluation view: whole image, centre cut, the first view's size, normalisation and interpolation.

        It is grey where all that the first view shows is.
        """
        first = self.views[0]
        plain = plain_view(first.size, first.normalise, interpolation=first.interpolation)
        return replace(plain, grey=first.grey >= 1, greyscale=first.greyscale)


class _OneView(Pipeline[Images]):
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> Images:
        return Images(x[0], index)


class _TwoViews(Pipeline[TwoViews]):
    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> TwoViews:
        return TwoViews(x[0], x[1], index)


@dataclass(frozen=True)
class _MultiCrop(Pipeline[MultiCrop]):
    large: int

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> MultiCrop:
        return MultiCrop(tuple(x[: self.large]), tuple(x[self.large :]), index)


@dataclass(frozen=True)
class _MaskedView(Pipeline[MaskedImages]):
    patch: int
    ratio: float

    @property
    def patches(self) -> int:
        return (self.views[0].size // self.patch) ** 2

    def plan(self, key: Key) -> Plan:
        return {**super().plan(key), "mask": uniforms(key, "mask", self.patches)}

    def assemble(self, x: list[Tensor], plan: Plan, index: Tensor) -> MaskedImages:
        visible, masked = partition(plan["mask"], int(self.patches * (1 - self.ratio)))
        return MaskedImages(x[0], visible.to(x[0].device), masked.to(x[0].device), index)

    def describe(self) -> str:
        keep = int(self.patches * (1 - self.ratio))
        return f"{super().describe()}; {keep} of {self.patches} patches of {self.patch} px stay visible"


def partition(u: Float[Tensor, "b n"], keep: int) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b m"]]:
    """A uniformly random partition of n positions: the ``keep`` smallest of ``u`` and the rest, each ascending.

    >>> partition(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), 2)
    (tensor([[0, 2]]), tensor([[1, 3]]))
    """
    order = u.argsort(dim=1, stable=True)
    return order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values


@dataclass(frozen=True)
class PlainView(Views[Images]):
    """Evaluation views of whole images: nothing is random, so the plan is empty. ``plain_view`` builds it."""

    size: int
    normalise: Normalise | None
    resize: int
    interpolation: Interpolation
    grey: bool = False
    greyscale: Greyscale = "luma"

    def plan(self, key: Key) -> Plan:
        return {}

    def cut(self, images: Sequence[UInt8[Tensor, "c _ _"]], plan: Plan) -> list[UInt8[Tensor, "b 1 c s s"]]:
        return [
            torch.stack([geometry.centre(image[None], self.size, self.resize, self.interpolation) for image in images])
        ]

    @torch.no_grad()
    def render(self, images: UInt8[Tensor, "b c h w"] | Cuts, plan: Plan, key: Key) -> Images:
        if isinstance(images, Tensor):
            x = geometry.centre(images.float(), self.size, self.resize, self.interpolation).clamp(0, 255) / 255
        else:
            x = images[0][:, 0].float() / 255
        if self.grey:
            colour.greyscale_(x.transpose(0, 1), torch.arange(len(x), device=x.device), self.greyscale)
        normalise_(x.transpose(0, 1), self.normalise)
        return Images(x, key.index.to(x.device, non_blocking=True))

    def describe(self) -> str:
        """The view in one line."""
        start = "" if self.resize == self.size else f"short side to {self.resize} px, "
        grey = "" if not self.grey else ", grey" if self.greyscale == "luma" else f", {self.greyscale}"
        return f"{start}centre {self.size} px{grey}{', normalise' if self.normalise else ''}"

    @property
    def plain(self) -> "PlainView":
        return self


def one_view(view: View) -> Pipeline[Images]:
    """One view of each image."""
    return _OneView((view,))


def two_views(first: View, second: View | None = None) -> Pipeline[TwoViews]:
    """Two views of each image: two independent draws of ``first``, or one of each.

    >>> views = two_views(View(size=32))
    >>> key = Key(seed=0, epoch=torch.zeros(4, dtype=torch.long), index=torch.arange(4))
    >>> batch = views.render(torch.zeros(4, 3, 40, 40, dtype=torch.uint8), views.plan(key), key)
    >>> batch.x1.shape, batch.x2.shape
    (torch.Size([4, 3, 32, 32]), torch.Size([4, 3, 32, 32]))
    """
    return _TwoViews((first, second or first))


def multi_crop(large: Sequence[View], small: Sequence[View] = ()) -> Pipeline[MultiCrop]:
    """Crops of two sizes, each with its own view: ``large``, at least two, and ``small``.

    SwAV and DINO: two of 224 px and six or eight of 96 px. For small images for instance 32 and 16 px.
    """
    if len(large) < 2:
        raise ValueError(f"multi-crop needs at least two large views, not {len(large)}")
    return _MultiCrop((*large, *small), len(large))


def single_crop(large: View, small: Sequence[View] = ()) -> Pipeline[MultiCrop]:
    """One large crop, and perhaps small ones: for methods in which no crop is compared with another (PIC)."""
    return _MultiCrop((large, *small), 1)


def masked_view(view: View, *, patch: int, ratio: float) -> Pipeline[MaskedImages]:
    """One view of each image and a random partition of its patches, ``ratio`` of them masked (rounded up), as MAE.

    Raises ValueError where ``patch`` does not divide the view, or nothing would stay visible or masked.
    """
    if view.size % patch:
        raise ValueError(f"patch {patch} does not divide a view of {view.size} px; take a divisor of {view.size}")
    masked = _MaskedView((view,), patch, ratio)
    if not 0 < int(masked.patches * (1 - ratio)) < masked.patches:
        raise ValueError(f"mask ratio {ratio} of {masked.patches} patches must leave some visible and some masked")
    return masked


def plain_view(
    size: int, normalise: Normalise | None, *, resize: int | None = None, interpolation: Interpolation = "bilinear"
) -> PlainView:
    """Evaluation: the short side resized to ``resize`` pixels, then the centre of ``size`` pixels.

    ``resize`` defaults to ``size * 256 / 224`` above 96 px (ImageNet's protocol) and to ``size`` up to there, where an
    image of that size stays as it is. Its plan is empty.
    """
    resize = resize or (round(size * 256 / 224) if size > SMALL else size)
    if resize < size:
        raise ValueError(f"resize={resize} is smaller than the view of {size} px; take at least {size}")
    return PlainView(size, normalise, resize, interpolation)
