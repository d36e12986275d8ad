"""Features of a frozen encoder: every readable image once, in the source's order, sharded over the processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.data.loader import plain_batches
from selfsight.data.protocol import NoneReadable, Source
from selfsight.distributed import rank, world_size
from selfsight.encoders.protocol import Encoder
from selfsight.evaluation.stream import moved
from selfsight.views.protocol import Views

Kind = Literal["pooled", "patches"]
Precision = Literal["32", "bf16"]
OnSkip = Callable[[int, str, str], None]


class Features(NamedTuple):
    """What an encoder says of some images: float32 on the CPU; ``x`` is ``n d``, or ``n t d`` for patches."""

    x: Float[Tensor, "n *t d"]
    labels: Int[Tensor, " n"]
    """-1 where unknown."""
    positions: Int[Tensor, " n"]
    """Where each image stands in its source."""

    def labelled(self) -> "Features":
        """The rows whose label is known."""
        known = self.labels >= 0
        return self if bool(known.all()) else self.rows(known)

    def rows(self, which: Tensor) -> "Features":
        """The rows that ``which`` (a mask or positions) picks."""
        return Features(self.x[which], self.labels[which], self.positions[which])


@contextmanager
def frozen(encoder: Encoder) -> Iterator[None]:
    """The encoder in evaluation mode, each of its modules back in its own mode at the end."""
    modes = [(module, module.training) for module in cast(nn.Module, encoder).modules()]
    cast(nn.Module, encoder).eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def encode(encoder: Encoder, x: Tensor, *, kind: Kind = "pooled", precision: Precision = "32") -> Tensor:
    """One batch through the encoder as it stands: ``b d``, or ``b t d`` with patches in row-major order."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        out = encoder(x) if kind == "pooled" else encoder.dense(x).flatten(2).transpose(1, 2)
    return out.float()


def feature_batches(
    encoder: Encoder,
    source: Source,
    plain: Views[Images],
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    cache_dir: Path | None = None,
    kind: Kind = "pooled",
    precision: Precision = "32",
    on_skip: OnSkip | None = None,
) -> Iterator[Features]:
    """This process's shard of the features, a batch at a time: memory stays flat whatever the source's size."""
    cast(nn.Module, encoder).to(device)
    known = source.labels
    labels = torch.full((len(source),), -1) if known is None else torch.from_numpy(np.array(known, dtype=np.int64))
    batches = plain_batches(
        source,
        plain,
        batch_size=batch_size,
        workers=workers,
        rank=rank(),
        world=world_size(),
        cache_dir=cache_dir,
        on_skip=on_skip,
    )
    for images, key in batches:
        with frozen(encoder), torch.inference_mode():
            views = plain.render(moved(images, device), plain.plan(key), key)
            out = encode(encoder, views.x, kind=kind, precision=precision).cpu()
        # out of inference mode: what is kept may later take part in a graph
        yield Features(out.clone(), labels[key.index.cpu()], key.index.cpu())


def extract(
    encoder: Encoder,
    source: Source,
    plain: Views[Images],
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    cache_dir: Path | None = None,
    kind: Kind = "pooled",
    precision: Precision = "32",
    on_skip: OnSkip | None = None,
) -> Features:
    """The features of all readable images of ``source``; under several processes each gets those of all.

    Images that cannot be read are left out and handed to ``on_skip(position, where, reason)`` of the process that met
    them; where all are, ``NoneReadable`` on every process. Needs ``len(source) * width`` numbers, and beside them no
    more than a batch.
    """
    batches = feature_batches(
        encoder,
        source,
        plain,
        device=device,
        batch_size=batch_size,
        workers=workers,
        cache_dir=cache_dir,
        kind=kind,
        precision=precision,
        on_skip=on_skip,
    )
    kept: Features | None = None
    filled = 0
    for batch in batches:
        if kept is None:  # the width is known now: one array, filled in place, instead of a list and its copy
            room = -(-len(source) // world_size())
            kept = Features(*(x.new_empty((room, *x.shape[1:])) for x in batch))
        for whole, part in zip(kept, batch, strict=True):
            whole[filled : filled + len(part)] = part
        filled += len(batch.positions)
    mine = None if kept is None else Features(*(x[:filled] for x in kept))
    everyone = mine if world_size() == 1 else _gather(mine, device)
    if everyone is None or not len(everyone.positions):
        raise NoneReadable(f"no readable image in {source.name}: none of its {len(source)} images could be decoded")
    return everyone


def _gather(mine: Features | None, device: str | torch.device) -> Features | None:
    """All processes' rows in rank order; the ends may be uneven, so rows are padded for the way and cut after it."""
    counts: list[tuple[int, tuple[int, ...]]] = [(0, ())] * world_size()
    dist.all_gather_object(counts, (0, ()) if mine is None else (len(mine.x), tuple(mine.x.shape[1:])))
    shape = next((shape for n, shape in counts if n), None)
    if shape is None:
        return None
    if mine is None:
        mine = Features(torch.empty(0, *shape), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    sizes = [n for n, _ in counts]
    return Features(*(_gather_rows(x, sizes, device) for x in mine))


def _gather_rows(x: Shaped[Tensor, "n ..."], sizes: list[int], device: str | torch.device) -> Shaped[Tensor, "m ..."]:
    way = torch.device(device) if dist.get_backend() == "nccl" else torch.device("cpu")
    padded = x.new_zeros((max(sizes), *x.shape[1:]), device=way)
    padded[: len(x)] = x.to(way)
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n].cpu() for part, n in zip(parts, sizes, strict=True)])
