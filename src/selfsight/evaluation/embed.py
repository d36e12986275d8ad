"""Features of images into one file: Parquet, or NumPy's format with a CSV beside it."""

import os
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from selfsight import distributed
from selfsight.data.cache import cache_folder
from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.workers import default_workers
from selfsight.encoders.protocol import Encoder
from selfsight.engine.run import OpenRun
from selfsight.errors import UserError
from selfsight.evaluation.features import Features, Kind, OnSkip, Precision, feature_batches
from selfsight.evaluation.processes import meet, processes
from selfsight.evaluation.subject import channels_of, open_subject
from selfsight.evaluation.writers import files_of, open_writer
from selfsight.views.protocol import Views

T = TypeVar("T")


class Embedded(NamedTuple):
    """What was written: ``rows`` images with features of ``shape`` each; ``skipped`` images could not be read.

    >>> print(Embedded(Path("f.npy"), 12000, (64, 192), 3))
    f.npy: 12,000 images, features of 64 x 192; 3 images could not be read
    """

    path: Path
    rows: int
    shape: tuple[int, ...]
    skipped: int

    def __str__(self) -> str:
        left_out = f"; {self.skipped:,} images could not be read" if self.skipped else ""
        return f"{self.path}: {self.rows:,} images, features of {' x '.join(map(str, self.shape))}{left_out}"


def embed(
    run: Path | str | OpenRun | Encoder,
    *,
    out: Path,
    data: Any = None,
    kind: Kind = "pooled",
    split: Literal["train", "test", "all"] = "all",
    limit: int | None = None,
    labels: Path | None = None,
    device: str = "cpu",
    which: Literal["last", "best"] = "last",
    batch_size: int = 256,
    workers: int | None = 0,
    precision: Precision = "32",
    seed: int = 0,
    plain: Views[Any] | None = None,
    on_skip: OnSkip | None = None,
) -> Embedded:
    """Writes the features of the images of ``data`` (the run's own by default), in order, with where and label.

    ``out`` ends in ``.parquet`` (columns position, where, label, feature) or ``.npy`` (an array, and a CSV of the other
    columns at ``out`` + ``.csv``). ``kind="patches"`` writes each image's patch tokens, row by row of the patch grid.
    The file is renamed into place when it is whole; memory holds a batch. Under torchrun each process embeds its share
    into a part beside ``out``, on a disk that all can reach, and the first process joins them.
    """
    out = Path(out)
    files_of(out, out.suffix)  # refuses another format before anything is opened
    subject = open_subject(run, plain=plain, which=which)
    flags = subject.run.flags if subject.run else None
    if data is None:
        data = subject.run.data() if subject.run else "world"
        labels = labels or (flags.labels if flags else None)
    size = getattr(subject.plain, "size", None)
    source = open_data(
        data,
        split=split,
        image_size=size,
        limit=limit,
        labels=labels,
        seed=seed,
        channels=channels_of(subject.encoder),
    )
    skipped: list[int] = []

    def skip(position: int, where: str, reason: str) -> None:
        skipped.append(position)
        if on_skip:
            on_skip(position, where, reason)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with processes(device) as place:
            batches = feature_batches(
                subject.encoder,
                source,
                subject.plain,
                device=place,
                batch_size=batch_size,
                workers=default_workers(distributed.world_size()) if workers is None else workers,
                cache_dir=cache_folder(),
                kind=kind,
                precision=precision,
                on_skip=skip,
            )
            facts = {**subject.facts(), "kind": kind, "selfsight": version("selfsight")}
            counts = _write(batches, source, out, {key: str(value) for key, value in facts.items()}, place)
            shares = _everyones(len(skipped))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
    rows = sum(count for count, _ in counts)
    if not rows:
        raise UserError(f"no readable image in {source.name}: none of its {len(source)} images could be decoded")
    return Embedded(out, rows, next(shape for count, shape in counts if count), sum(shares))


def _write(
    batches: Iterable[Features], source: Source, out: Path, facts: Mapping[str, str], place: torch.device
) -> list[tuple[int, tuple[int, ...]]]:
    """Writes this process's batches beside ``out``; the first process joins the parts and renames the whole.

    Returns the rows and the shape of a feature of each process.
    """
    rank = distributed.rank()
    part = _part(out, rank)
    rows, shape = 0, ()
    try:
        writer = open_writer(part, out.suffix, facts)
        for batch in batches:
            where = [source.where(position) for position in batch.positions.tolist()]
            writer.add(batch.x.numpy(), batch.positions.numpy(), where, batch.labels.numpy())
            rows, shape = rows + len(where), tuple(batch.x.shape[1:])
        if rank > 0:
            writer.close()
        counts = _everyones((rows, shape))
        if rank == 0:  # its share comes first: it takes over the others' in order
            for other, (count, _) in enumerate(counts):
                if other > 0 and count:
                    writer.append(files_of(_part(out, other), out.suffix))
            writer.close()
            if any(count for count, _ in counts):
                for mine, whole in zip(files_of(part, out.suffix), files_of(out, out.suffix), strict=True):
                    os.replace(mine, whole)
        meet(place)
    finally:
        for file in files_of(part, out.suffix):
            file.unlink(missing_ok=True)
    return counts


def _part(out: Path, rank: int) -> Path:
    return out.with_name(f".{out.name}.part{rank}")


def _everyones(mine: T) -> list[T]:
    """What each process has, in rank order."""
    everyones = [mine] * distributed.world_size()
    if len(everyones) > 1:
        dist.all_gather_object(everyones, mine)
    return everyones
