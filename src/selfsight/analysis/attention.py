r"""What the heads of a transformer look at: how far, how evenly, and how differently from each other.

Xie et al., "Revealing the Dark Secrets of Masked Image Modeling", CVPR 2023, arXiv 2205.13543. With :math:`A_{n,ij}`
how much query :math:`i` of image :math:`n` attends to key :math:`j`, in one head of one layer, rows summing to 1:

- the **average attention distance** is :math:`\overline{\sum_j A_{n,ij} \lVert c_i - c_j \rVert}` in pixels of the
  image, :math:`c` the patches' centres;
- the **entropy** is :math:`\overline{-\sum_j A_{n,ij} \ln A_{n,ij}}` in nats, at most the log of the number of keys;
- the **divergence** of a head from the others is :math:`\overline{\mathrm{KL}(A^h_{n,i} \Vert A^{h'}_{n,i})}`, the mean
  over the other heads :math:`h'` too.

Class and register tokens are taken out of rows and columns, and what is left of a row is scaled to 1 (no code of the
paper is public; so Megvii's analysis does it). A Swin's attention is inside windows: distances there are those inside
the window, which a shift does not change, since parts that were brought together by it attend to each other by 0.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from selfsight.encoders.protocol import Encoder
from selfsight.evaluation.features import frozen
from selfsight.evaluation.layerwise import prefix_of
from selfsight.evaluation.subject import channels_of

_SMALL = 1e-12
_OTHERS = ("XCA", "ClassAttn", "TalkingHeadAttn")
"""Attention that is over channels, or of a class token that comes late (XCiT, CaiT): it is no map over patches."""
_BLOCK = re.compile(r"(.*\.)?blocks\.\d+")
"""The block that a module is in or is."""
_WINDOWS = ("input_resolution", "feat_size")
"""Where a block of Swin has the size of its map: timm's first and second version, and that of Christoph Reich."""
_QUERIES = 1 << 12
"""Queries whose heads are compared at once: the divergences take heads x heads x keys numbers for each."""


@dataclass(frozen=True)
class Layer:
    """One layer's attention."""

    name: str
    module: nn.Module
    prefix: int
    """Tokens that are no patches, which come first."""
    patch: float
    """Pixels of the image from a patch to the next."""
    block: str = ""
    """The block that it is in."""


class Heads(NamedTuple):
    """The means of one layer, by head."""

    distance: Float64[Tensor, " heads"]
    """Pixels."""
    entropy: Float64[Tensor, " heads"]
    """Nats."""
    divergence: Float64[Tensor, " heads"]
    """Nats; 0 where there is one head."""


def layers_of(encoder: nn.Module, image_size: int) -> list[Layer]:
    """The attention layers of transformers (ViT, DeiT, BEiT, ConvMAE, Swin...), from the input on; none of other nets.

    One black image tells them: a Swin's are over square windows, another's over all patches, which are as many in each
    block and a square.
    """
    model: Any = getattr(encoder, "model", encoder)
    shapes: dict[str, torch.Size] = {}
    candidates = [Layer(name, module, 0, 1.0) for name, module in attending(encoder).items()]
    if not candidates:
        return []

    def hear(layer: Layer, given: Tensor) -> None:
        shapes[layer.name] = given.shape

    black = next(model.parameters()).new_zeros(1, channels_of(cast(Encoder, encoder)), image_size, image_size)
    with frozen(cast(Encoder, encoder)), torch.inference_mode(), listening(candidates, hear):
        encoder(black)
    found = [_placed(model, name, shape, image_size) for name, shape in shapes.items()]
    return [layer for layer in found if layer is not None]


def attending(encoder: nn.Module) -> dict[str, nn.Module]:
    """All that drops attention out, by name, whatever it is over."""
    model: Any = getattr(encoder, "model", encoder)
    parts: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return {name: part for name, part in parts if isinstance(getattr(part, "attn_drop", None), nn.Module)}


def _placed(model: nn.Module, name: str, shape: torch.Size, image_size: int) -> Layer | None:
    """The layer, where its attention in one image has the shape of that of patches to patches."""
    module, inside = model.get_submodule(name), _BLOCK.match(name)
    if inside is None or type(module).__name__ in _OTHERS or len(shape) != 4 or shape[2] != shape[3]:
        return None
    block = model.get_submodule(inside[0])
    resolution = next((getattr(block, key) for key in _WINDOWS if hasattr(block, key)), None)
    isotropic = inside[1] is None and not isinstance(block, nn.ModuleList) and shape[0] == 1
    prefix = 0 if resolution else prefix_of(shape[3], getattr(model, "num_prefix_tokens", 0))
    side = math.isqrt(shape[3] - prefix)
    if not (resolution or isotropic) or side**2 != shape[3] - prefix:
        return None
    return Layer(name, module, prefix, image_size / (resolution[0] if resolution else side), inside[0])


Listener = Callable[[Layer, Float[Tensor, "b heads n n"]], None]


@contextmanager
def listening(layers: list[Layer], hear: Listener) -> Iterator[None]:
    """Hands every layer's attention to ``hear`` in each forward pass.

    Fused kernels never write it down, so they stand aside for the time being. The network must be in evaluation mode.
    """

    def pass_on(layer: Layer, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        hear(layer, given[0])

    with ExitStack() as stack:
        for layer in layers:
            kernel: Any = layer.module
            if hasattr(kernel, "fused_attn"):
                stack.callback(setattr, kernel, "fused_attn", kernel.fused_attn)
                kernel.fused_attn = False
            # what goes into the dropout after the softmax is the attention
            stack.enter_context(_removed(kernel.attn_drop.register_forward_pre_hook(partial(pass_on, layer))))
        yield


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


class Tally:
    """Sums over all queries of all batches, in double precision, so that uneven batches weigh as they should."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, layer: Layer, attention: Float[Tensor, "b heads n n"]) -> None:
        rows = among_patches(attention, layer.prefix).double()
        queries = rows.shape[0] * rows.shape[2]
        measured = torch.stack([distances(rows, layer.patch), entropies(rows), divergences(rows)]).cpu() * queries
        self.sums[layer.name] = self.sums[layer.name] + measured if layer.name in self.sums else measured
        self.counts[layer.name] = self.counts.get(layer.name, 0) + queries

    def means(self) -> dict[str, Heads]:
        """By layer, from the input on."""
        return {name: Heads(*(total / self.counts[name])) for name, total in self.sums.items()}


def among_patches(attention: Float[Tensor, "b h n n"], prefix: int) -> Float[Tensor, "b h m m"]:
    """Attention of patches to patches, rows summing to 1."""
    rows = attention[..., prefix:, prefix:]
    return rows / rows.sum(-1, keepdim=True).clamp_min(_SMALL)


def distances(rows: Float[Tensor, "b h n n"], patch: float) -> Float[Tensor, " h"]:
    """Mean distance of each head in pixels.

    >>> f"{distances(torch.full((1, 1, 64, 64), 1 / 64), 4.0).item():.2f}"  # all alike, over 8 x 8 patches of 4 px
    '16.55'
    """
    apart = _apart(math.isqrt(rows.shape[-1]), rows.shape[-1]).to(rows)
    return torch.einsum("bhij,ij->h", rows, apart) * patch / (rows.shape[0] * rows.shape[2])


@cache
def _apart(side: int, n: int) -> Tensor:
    """Distances between the places of a square grid, in patches."""
    if side * side != n:
        raise ValueError(f"attention over {n} patches is not over a square of them")
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    return torch.cdist(at, at)


def entropies(rows: Float[Tensor, "b h n n"]) -> Float[Tensor, " h"]:
    """Mean entropy of each head's rows in nats.

    >>> f"{entropies(torch.full((1, 1, 64, 64), 1 / 64)).item():.3f}"
    '4.159'
    """
    return torch.special.entr(rows).sum(-1).mean((0, 2))


def divergences(rows: Float[Tensor, "b h n n"]) -> Float[Tensor, " h"]:
    """Mean KL divergence of each head's rows from those of the other heads, in nats; 0 where there is one head."""
    heads = rows.shape[1]
    if heads == 1:
        return rows.new_zeros(1)
    total = rows.new_zeros(heads)
    for part in rows.transpose(1, 2).flatten(0, 1).split(_QUERIES):  # queries, heads, keys
        log = part.clamp_min(_SMALL).log()
        cross = torch.einsum("qhk,qgk->hg", part, log)  # sum of p_h ln p_g
        total += cross.diagonal() * heads - cross.sum(1)
    return total / (rows.shape[0] * rows.shape[2] * (heads - 1))
