r"""Local-global infomax: one vector of a view picks the places of the other view's map out of all other images'."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # torch's own

from selfsight.losses.precision import full, no_autocast

_SCORES = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Scores of a block, 1 MiB in float32 on a processor and 64 MiB on a GPU; fixed, so that bits do not depend on it."""


class Infomax(NamedTuple):
    """The contrastive loss, and the mean square of the scores before their clipping, which the caller weighs."""

    loss: Float[Tensor, ""]
    square: Float[Tensor, ""]


def soft_clip(x: Float[Tensor, "..."], clip: float) -> Float[Tensor, "..."]:
    r""":math:`c \tanh(x / c)`: the identity near 0, bounded by ``clip``.

    >>> soft_clip(torch.tensor([0.1, 1000.0]), 20.0)
    tensor([ 0.1000, 20.0000])
    """
    return clip * torch.tanh(x / clip)


def local_infomax(
    source: Float[Tensor, "b d"],
    targets: Float[Tensor, "b d l"],
    *,
    clip: float = 20.0,
    everyone: Float[Tensor, "n d l"] | None = None,
    offset: int = 0,
) -> Infomax:
    r"""AMDIM's noise-contrastive bound between a vector and a map of the other view (Bachman et al., 2019, section 3).

    With raw scores :math:`s_{b,b',l} = x_b^\top t_{b',l} / \sqrt d` and :math:`u = c \tanh(s / c)`,

    .. math:: L = \frac1{b l} \sum_{b, l} -\log
        \frac{e^{u_{b,b,l}}}{e^{u_{b,b,l}} + \sum_{b' \ne b} \sum_{l'} e^{u_{b,b',l'}}} .

    The other places of an image's own map are neither positives nor negatives. Over several processes ``everyone`` is
    the gathered targets, where this process's begin at ``offset``: means over processes are the joined batch's. Scores
    are computed in blocks of images, and again in the backward pass.

    >>> x, t = torch.zeros(480, 8), torch.randn(480, 8, 25)
    >>> local_infomax(x, t).loss  # all scores zero: log(1 + 479 * 25)
    tensor(9.3907)
    """
    candidates = targets if everyone is None else everyone
    (b, d), (n, _, places) = source.shape, candidates.shape
    if n < 2:
        raise ValueError("local_infomax needs at least two images, since the others are its negatives; got one")
    if not 0 <= offset <= n - b:
        raise ValueError(f"local_infomax got offset {offset} for {b} images among {n}; it is where they stand there")
    source, candidates = full(source) * d**-0.5, full(candidates)
    columns = candidates.transpose(0, 1).flatten(1)  # made once, for all blocks
    side = max(1, _SCORES.get(source.device.type, _SCORES["cuda"]) // (n * places))
    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, b, side):
        some = source[start : start + side]
        own = torch.arange(offset + start, offset + start + len(some), device=source.device)
        block = (some, columns, own, places, clip)
        if side >= b:
            parts.append(_block(*block))
        else:
            parts.append(checkpoint(_block, *block, use_reentrant=False, preserve_rng_state=False))
    loss, square = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    return Infomax(loss / (b * places), square / (b * n * places))


def _block(source: Tensor, columns: Tensor, own: Tensor, places: int, clip: float) -> tuple[Tensor, Tensor]:
    """The summed loss of some images and their summed squared raw scores."""
    with no_autocast(source):
        raw = (source @ columns.to(source.dtype)).view(len(source), -1, places)
    scores = soft_clip(raw, clip)
    mine = own[:, None, None].expand(-1, 1, places)
    positive = scores.gather(1, mine)[:, 0]
    negatives = scores.scatter(1, mine, -torch.inf).flatten(1).logsumexp(dim=1, keepdim=True)
    return softplus(negatives - positive).sum(), raw.square().sum()
