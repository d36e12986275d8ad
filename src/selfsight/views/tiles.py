"""Tiles cut from a rendered image, and what is done to each so that it tells nothing but what it shows.

Context prediction and jigsaw puzzles ask where a tile was. Mean colour, a lens's colour fringes, edges that go on in
the next tile or the sharpness of a patch would answer that without any object being recognised.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selfsight.keyed import Key, uniforms
from selfsight.views import geometry

SIDE = 3
"""Tiles along each axis."""

_LEVEL = 1 / 255
"""Added (squared) to a tile's variance: one grey level, so that a flat tile's rounding noise stays small."""

_NOISE = 0.01
"""Of the remaining channel's deviation: the noise in place of a dropped colour (Doersch et al., section 3.1)."""

DROP_DRAWS, COARSE_DRAWS = 5, 2


def take(
    x: Float[Tensor, "b c h w"], top: Int[Tensor, "b n channels"], left: Int[Tensor, "b n channels"], size: int
) -> Float[Tensor, "b n c p p"]:
    """Tiles of ``size`` pixels with these corners, for each channel its own or one for all."""
    b, c = x.shape[:2]
    inside = torch.arange(size)
    rows, columns = ((start.expand(-1, -1, c)[..., None] + inside).to(x.device) for start in (top, left))
    sample = torch.arange(b, device=x.device)[:, None, None, None, None]
    channel = torch.arange(c, device=x.device)[:, None, None]
    return x[sample, channel, rows[..., :, None], columns[..., None, :]]


def normalise_(x: Float[Tensor, "... c p p"], *, joint: bool) -> Tensor:
    """Gives each tile's channels a mean of zero and a deviation of one: each channel's own, or one of all (``joint``).

    >>> normalise_(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), joint=True)[0, 0]
    tensor([-1.0000,  1.0000])
    """
    x -= x.mean((-2, -1), keepdim=True)
    variance = x.square().mean((-3, -2, -1) if joint else (-2, -1), keepdim=True)
    return x.div_((variance + _LEVEL**2).sqrt_())


def project_(x: Float[Tensor, "... c h w"]) -> Tensor:
    r"""Projects each pixel's green against magenta out: :math:`B = I - a^\top a / (a a^\top)`, a = (-1, 2, -1).

    That is the axis along which most lenses split colours. What they split stays double in each channel, which says the
    same to who compares a tile with itself. Images of other than three channels stay as they are.
    """
    if x.shape[-3] == 3:
        red, green, blue = x.unbind(-3)
        share = (2 * green - red - blue) / 6
        red += share
        green -= 2 * share
        blue += share
    return x


def drop_(x: Float[Tensor, "n c p p"], u: Float[Tensor, "n 5"]) -> Tensor:
    """Keeps one channel of three in each patch, less its mean, and puts weak noise in the place of the others.

    The noise is a window of one fixed field, at a place that is drawn: so it depends on the key alone, and costs no
    number a pixel. ``u`` lies on the CPU.
    """
    if x.shape[1] != 3:
        return x
    p = x.shape[-1]
    kept = (u[:, 0].double() * 3).long()
    stays = x[torch.arange(len(x)), kept]
    stays -= stays.mean((1, 2), keepdim=True)
    strength = _NOISE * stays.square().mean((1, 2), keepdim=True).sqrt()
    corner = (u[:, 1:].double() * (p + 1)).long().unflatten(1, (2, 2))
    noise = _field(p, x.device).expand(1, 1, -1, -1)
    for k in range(2):  # the two channels after the one that stays, in turn
        here = take(noise.expand(len(x), -1, -1, -1), corner[:, k, :1, None], corner[:, k, 1:, None], p)[:, 0, 0]
        x[torch.arange(len(x)), (kept + 1 + k) % 3] = here * strength
    x[torch.arange(len(x)), kept] = stays
    return x


@lru_cache(maxsize=8)
def _field(p: int, device: torch.device) -> Float[Tensor, "q q"]:
    """Uniform noise with a deviation of one, of twice a patch's side."""
    one = torch.zeros(1, dtype=torch.long)
    noise = uniforms(Key(0, one, one), "noise for dropped colours", 4 * p * p)
    return ((2 * noise - 1) * 3**0.5).view(2 * p, 2 * p).to(device)


def coarsen_(x: Float[Tensor, "n c p p"], u: Float[Tensor, "n 2"], share: float) -> Tensor:
    r"""Shrinks a ``share`` of the patches and enlarges them again, to as little as 10 of 96 pixels a side.

    The side is :math:`\lfloor\sqrt{U(10^2, 95^2)}\rfloor` of 96 pixels, in proportion to the patch. ``u`` lies on the
    CPU.
    """
    p = x.shape[-1]
    rows = (u[:, 0] < share).nonzero()[:, 0]
    if len(rows):
        low, high = (10 / 96 * p) ** 2, (95 / 96 * p) ** 2
        side = (low + u[rows, 1].double() * (high - low)).sqrt().long().clamp_min(1)
        there = rows.to(x.device)
        taps = _there_and_back(p, x.device)[(side - 1).to(x.device)][:, None]
        x[there] = taps.mT @ x[there] @ taps
    return x


@lru_cache(maxsize=8)
def _there_and_back(p: int, device: torch.device) -> Float[Tensor, "s p p"]:
    """An axis's weights of being resized from ``p`` pixels to s + 1 and back."""

    def resize(pixels: int, size: int) -> Float[Tensor, "from to"]:
        start, length = torch.zeros(1), torch.tensor([float(pixels)])
        return geometry.weights(start, length, pixels, size, "bilinear", closed=True)[0]

    return torch.stack([resize(p, s) @ resize(s, p) for s in range(1, p + 1)]).to(device)


def shown(x: Float[Tensor, "... c p p"]) -> Float[Tensor, "... c p p"]:
    """Normalised tiles for the eye: two and a half deviations each way fill black to white."""
    return (x.float().cpu() * 0.2 + 0.5).clamp(0, 1)


def mosaic(x: Float[Tensor, "b n c p p"], gap: int) -> UInt8[Tensor, "b c s s"]:
    """Tiles in [0, 1], three in a row, on white, ``gap`` pixels apart."""
    tiles = torch.nn.functional.pad(x, (0, gap, 0, gap), value=1.0).unflatten(1, (SIDE, SIDE))
    whole = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    whole = torch.nn.functional.pad(whole, (gap, 0, gap, 0), value=1.0)
    return whole.mul(255).round().to(torch.uint8)
