r"""Losses between the pixels of two feature maps, where the geometry of the crops says which pixels belong together.

Xie et al., "Propagate Yourself", CVPR 2021, arXiv 2011.10043. A pixel is one position of a feature map; each stands for
a rectangle of the original image, its bin. With :math:`c_i, c'_j` the centres of two bins and :math:`\Delta` the larger
of the two bins' diagonals,

.. math:: A_{ij} = 1 \quad\text{where}\quad \lVert c_i - c'_j \rVert / \Delta < T .

Maps come as rows of pixels, ``b n d``, in row-major order.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch types norm loosely

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.precision import full, no_autocast, unit


class Matches(NamedTuple):
    """Which pixels of two views of one image show the same place, and which lie in the other view at all."""

    near: Bool[Tensor, "b n m"]
    inside1: Bool[Tensor, "b n"]
    inside2: Bool[Tensor, "b m"]


@runtime_checkable
class PixelLoss(Protocol):
    """A loss of the pixels ``y1``, ``y2`` of two views and the targets ``t1``, ``t2`` of the same views."""

    def __call__(
        self,
        y1: Float[Tensor, "b n d"],
        y2: Float[Tensor, "b m d"],
        t1: Float[Tensor, "b n d"],
        t2: Float[Tensor, "b m d"],
        matches: Matches,
    ) -> Float[Tensor, ""]: ...


def centres(box: Float[Tensor, "b 4"], height: int, width: int) -> Float[Tensor, "b n 2"]:
    """The centres (x, y) of the bins of a map of ``height`` by ``width`` pixels over ``box``, in row-major order.

    >>> centres(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), 1, 2)[0]  # mirrored: the first pixel shows the right half
    tensor([[0.7500, 0.5000],
            [0.2500, 0.5000]])
    """
    left, top, right, bottom = full(box).unbind(dim=1)
    across = (torch.arange(width, device=box.device).to(left) + 0.5) / width
    down = (torch.arange(height, device=box.device).to(left) + 0.5) / height
    x = left[:, None] + (right - left)[:, None] * across
    y = top[:, None] + (bottom - top)[:, None] * down
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    return grid.flatten(1, 2)


@torch.no_grad()
def match(
    box1: Float[Tensor, "b 4"], box2: Float[Tensor, "b 4"], *, size: tuple[int, int], threshold: float
) -> Matches:
    """Compares the pixels of two maps of ``size`` (height, width) by where their bins lie in the original image.

    Boxes are left, top, right and bottom as the view shows them: mirrored where ``left > right``. Crops that do not
    overlap have no pixel near another but where a bin's diagonal reaches across the gap.

    >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> bool((match(box, box, size=(7, 7), threshold=0.7).near[0] == torch.eye(49)).all())
    True
    """
    c1, c2 = centres(box1, *size), centres(box2, *size)
    shape = c1.new_tensor([size[1], size[0]])  # columns, rows
    diagonals = [((full(box)[:, 2:] - full(box)[:, :2]) / shape).norm(dim=1) for box in (box1, box2)]
    distance = (c1[:, :, None] - c2[:, None, :]).norm(dim=-1)  # not cdist, whose products of large numbers cancel
    near = distance < threshold * torch.maximum(*diagonals)[:, None, None]
    return Matches(near, _within(c1, box2), _within(c2, box1))


def _within(points: Float[Tensor, "b n 2"], box: Float[Tensor, "b 4"]) -> Bool[Tensor, "b n"]:
    box = full(box)[:, None]
    low, high = torch.minimum(box[..., :2], box[..., 2:]), torch.maximum(box[..., :2], box[..., 2:])
    return ((points >= low) & (points <= high)).all(dim=-1)


def pixel_consistency(
    y1: Float[Tensor, "b n d"],
    y2: Float[Tensor, "b m d"],
    t1: Float[Tensor, "b n d"],
    t2: Float[Tensor, "b m d"],
    matches: Matches,
) -> Float[Tensor, ""]:
    r"""PixPro's loss: what was propagated agrees with the target's pixels of the same place.

    .. math:: L = -\frac2b \sum_b \Big[\frac{\sum_{ij} A_{ij} \cos(y_i, t'_j)}{\sum_{ij} A_{ij}}
        + \frac{\sum_{ij} A_{ij} \cos(y'_j, t_i)}{\sum_{ij} A_{ij}}\Big] \in [-4, 4]

    An image whose views have no pixel in common counts as 0. Nothing is detached here.

    >>> y = torch.randn(1, 4, 8)
    >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> round(pixel_consistency(y, y, y, y, match(box, box, size=(2, 2), threshold=0.7)).item(), 4)
    -4.0
    """
    y1, y2, t1, t2 = (unit(x, dim=-1) for x in (y1, y2, t1, t2))
    with no_autocast(y1):
        return -2 * (_agreement(y1 @ t2.mT, matches.near) + _agreement(y2 @ t1.mT, matches.near.mT))


def _agreement(cosines: Float[Tensor, "b n m"], near: Bool[Tensor, "b n m"]) -> Float[Tensor, ""]:
    """The mean over images of each image's mean cosine over its matching pairs."""
    pairs = near.sum(dim=(1, 2)).clamp_min(1)
    return ((cosines * near).sum(dim=(1, 2)) / pairs).mean()


def pixel_contrast(
    y1: Float[Tensor, "b n d"],
    y2: Float[Tensor, "b m d"],
    t1: Float[Tensor, "b n d"],
    t2: Float[Tensor, "b m d"],
    matches: Matches,
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""PixContrast's loss: a pixel picks those of its place out of all pixels of the other view of the same image.

    .. math:: \ell_i = -\log \frac{\sum_{j : A_{ij} = 1} e^{\cos(y_i, t'_j) / \tau}}
        {\sum_j e^{\cos(y_i, t'_j) / \tau}}

    The mean over the pixels that lie in the other view, over images, and over both directions. An image whose views do
    not overlap counts as 0. Nothing is detached here.

    >>> y, box = torch.ones(1, 49, 8), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> pixel_contrast(y, y, y, y, match(box, box, size=(7, 7), threshold=0.7), temperature=0.3)  # all alike: log(49)
    tensor(3.8918)
    """
    y1, y2, t1, t2 = (unit(x, dim=-1) for x in (y1, y2, t1, t2))
    with no_autocast(y1):
        there = _choice(y1 @ t2.mT / temperature, matches.near, matches.inside1)
        back = _choice(y2 @ t1.mT / temperature, matches.near.mT, matches.inside2)
    return (there + back) / 2


def _choice(
    scores: Float[Tensor, "b n m"], near: Bool[Tensor, "b n m"], inside: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """The mean over images of the mean over the pixels inside the other view of ``-log`` of the near ones' share."""
    nothing = torch.finfo(scores.dtype).min / 4  # a finite -inf: a pixel without near ones has no NaN in its gradient
    positive = scores.masked_fill(~near, nothing).logsumexp(dim=2)
    negative = scores.masked_fill(near, nothing).logsumexp(dim=2)
    anchors = inside & near.any(dim=2)
    losses = torch.where(anchors, softplus(negative - positive), 0.0)
    return (losses.sum(dim=1) / anchors.sum(dim=1).clamp_min(1)).mean()
