"""``selfsight analyse``: what a run's encoder attends to and how its layers differ, as tables, pictures and a page."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from selfsight.analysis.attention import Heads, Layer, Tally, attending, layers_of, listening
from selfsight.analysis.page import write_page
from selfsight.analysis.pictures import attention_sheet, patches_sheet
from selfsight.analysis.similarity import Alignment
from selfsight.data.cache import cache_folder
from selfsight.data.loader import plain_batches
from selfsight.data.splits import limited
from selfsight.data.workers import default_workers
from selfsight.encoders.build import build_encoder
from selfsight.engine.checkpoint import write_atomically
from selfsight.errors import UserError
from selfsight.evaluation.features import frozen
from selfsight.evaluation.layerwise import maps_of, stages
from selfsight.evaluation.stream import moved
from selfsight.evaluation.subject import Subject, open_pair, open_subject
from selfsight.views.pipelines import plain_view
from selfsight.views.view import IMAGENET

TIMM = "timm:"
"""What a name begins with that is a model of timm and no run."""


@dataclass
class Studied:
    """One encoder under analysis, and what was found of it."""

    name: str
    subject: Subject
    size: int
    attention: list[Layer] = field(default_factory=list[Layer])
    tally: Tally = field(default_factory=Tally)
    rows: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Of the last batch: each layer's feature of each image, the mean over places."""
    pictures: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def encoder(self) -> nn.Module:
        return cast(nn.Module, self.subject.encoder)

    def heads(self) -> dict[str, Heads]:
        return self.tally.means()


@dataclass(frozen=True)
class Analysis:
    """What was found: by subject and layer the heads' means, and how alike any two layers are."""

    subjects: tuple[Studied, ...]
    layers: tuple[tuple[str, str], ...]
    """Subject and layer of each row of ``alike``."""
    alike: Float64[Tensor, "layers layers"]
    images: int
    data: str
    out: Path


def analyse(
    runs: Sequence[Path | str | Any],
    *,
    data: Any = None,
    limit: int = 1000,
    out: Path | None = None,
    pictures: int = 8,
    batch_size: int = 128,
    device: str = "cpu",
    workers: int | None = 0,
    labels: Path | None = None,
    image_size: int = 224,
    pretrained: bool = False,
    seed: int = 0,
) -> Analysis:
    """Measures one or two encoders on the same images and writes tables, pictures and a page into ``out``.

    Args:
        runs: one or two: a run's folder, an encoder, or ``timm:NAME`` for a model of timm.
        data: as for pretraining; the first run's own by default. Its test part is looked at.
        limit: a keyed random subset of so many images.
        out: a folder; by default ``analysis`` in the first run.
        pictures: images in each picture.
        batch_size: images at once; layers are compared within a batch.
        device, workers: where and how.
        labels: a CSV of path,label, where the split of the data depends on it.
        image_size, pretrained: of a model of timm.
        seed: of the subset.

    Returns:
        The numbers. On the disk: ``attention.csv`` (distance in pixels, entropy and divergence in nats, by head; not
        for networks without attention), ``cka.csv``, ``attention-NAME.png`` (for transformers with a class token),
        ``patches-NAME.png`` and ``analysis.html``.
    """
    if not 1 <= len(runs) <= 2:
        raise UserError(f"analyse takes one run or two side by side, not {len(runs)}")
    if batch_size < 4 or limit < 4:
        raise UserError(f"layers are compared on 4 images or more; --limit is {limit}, the batch {batch_size}")
    if pictures < 0 or image_size < 1:
        raise UserError(f"--pictures is {pictures}, --image-size {image_size}; they must be at least 0 and 1")
    these = tuple(_open(run, image_size, pretrained, device) for run in runs)
    if len(these) == 2 and these[0].name == these[1].name:
        these[0].name, these[1].name = f"{these[0].name} (1)", f"{these[1].name} (2)"
    folder = out or _default_folder(these[0])
    folder.mkdir(parents=True, exist_ok=True)
    train, test = open_pair(these[0].subject, data, limit=None, labels=labels, seed=seed)
    source = limited(test if len(test) else train, limit, seed=seed)
    helpers = default_workers(1) if workers is None else workers
    streams = [
        plain_batches(source, s.subject.plain, batch_size=batch_size, workers=helpers, cache_dir=cache_folder())
        for s in these
    ]
    alignment, names, images = Alignment(), (), 0
    with ExitStack() as stack:
        for s in these:
            stack.enter_context(_watched(s))
        for batches in zip(*streams, strict=True):
            for s, (pixels, key) in zip(these, batches, strict=True):
                x = s.subject.plain.render(moved(pixels, device), s.subject.plain.plan(key), key).x
                with torch.inference_mode():
                    s.encoder(x)
                if not images and pictures:
                    _draw(s, x[:pictures], folder)
            images += len(batches[0][1].index)
            names = tuple((s.name, layer) for s in these for layer in s.rows)
            alignment.add([row for s in these for row in s.rows.values()])
    found = Analysis(these, names, alignment.matrix(), images, source.name, folder)
    _write_tables(found)
    write_page(found, folder / "analysis.html")
    return found


def _open(run: Any, image_size: int, pretrained: bool, device: str) -> Studied:
    if isinstance(run, str) and run.startswith(TIMM):
        name = run.removeprefix(TIMM)
        try:
            encoder = build_encoder(name, image_size=image_size, pretrained=pretrained)
        except ValueError as error:
            raise UserError(str(error)) from error
        subject = open_subject(encoder, plain=plain_view(image_size, IMAGENET))
    else:
        subject = open_subject(run)
        name = subject.run.path.resolve().name if subject.run else subject.facts()["encoder"]
    encoder, size = cast(nn.Module, subject.encoder).to(device), int(getattr(subject.plain, "size", image_size))
    return Studied(name, subject, size, layers_of(encoder, size))


def _default_folder(first: Studied) -> Path:
    return first.subject.run.path / "analysis" if first.subject.run else Path("analysis")


def _watched(s: Studied) -> ExitStack:
    """Listens to the attention and keeps each block's feature, until the context ends."""
    stack = ExitStack()
    stack.enter_context(frozen(s.subject.encoder))
    model: Any = getattr(s.encoder, "model", s.encoder)
    first = {"embedding": model.get_submodule(s.attention[0].block)} if s.attention else {}  # of the patches

    def keep(name: str, x: Tensor) -> None:
        s.rows[name] = x.float().mean((2, 3)).cpu()

    stack.enter_context(maps_of(s.subject.encoder, _compared(s), keep, before=first))

    def count(layer: Layer, given: Tensor) -> None:
        s.tally(layer, given)  # whichever it is now

    stack.enter_context(listening(s.attention, count))
    return stack


def _compared(s: Studied) -> dict[str, nn.Module]:
    """The blocks whose attention is heard, and the stages that have none of it."""
    model: Any = getattr(s.encoder, "model", s.encoder)
    blocks = {layer.block: model.get_submodule(layer.block) for layer in s.attention}
    inside = [{*block.modules()} for block in blocks.values()]
    others = {
        name: stage
        for name, stage in stages(s.subject.encoder).items()
        if not any({*stage.modules()} & block for block in inside)
    }
    return {**others, **blocks}


def _draw(s: Studied, x: Float[Tensor, "b c h w"], folder: Path) -> None:
    """The pictures of the first images; the pass that draws them is not counted."""
    counted = s.tally, s.rows
    s.tally, s.rows = Tally(), {}
    kept: dict[str, Tensor] = {}
    attention = s.attention[-1:]
    model: Any = getattr(s.encoder, "model", s.encoder)

    def hear(layer: Layer, given: Tensor) -> None:
        kept["last"] = given[:, :, 0, layer.prefix :]

    with torch.inference_mode(), listening(attention, hear):
        patches = s.subject.encoder.dense(x).float().cpu()
    s.tally, s.rows = counted
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in s.name)
    drawn = {"patches": patches_sheet(x.float().cpu(), patches)}
    if kept and attention[0].prefix and getattr(model, "cls_token", None) is not None:
        drawn = {"attention": attention_sheet(x.float().cpu(), kept["last"].float().cpu()), **drawn}
    for what, picture in drawn.items():
        packed = io.BytesIO()
        picture.save(packed, "PNG")
        s.pictures[what] = folder / f"{what}-{safe}.png"
        write_atomically(s.pictures[what], packed.getvalue())


def _write_tables(found: Analysis) -> None:
    lines = [
        [s.name, layer, head, *(f"{float(values[head]):.6g}" for values in heads)]
        for s in found.subjects
        for layer, heads in s.heads().items()
        for head in range(len(heads.distance))
    ]
    if lines:
        columns = ["run", "layer", "head", "distance_pixels", "entropy_nats", "divergence_nats"]
        _write_csv(found.out / "attention.csv", [columns, *lines])
    names = [f"{who}/{layer}" for who, layer in found.layers]
    rows = [[name, *(f"{value:.6g}" for value in row)] for name, row in zip(names, found.alike.tolist(), strict=True)]
    _write_csv(found.out / "cka.csv", [["", *names], *rows])


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def summary(found: Analysis) -> Iterator[str]:
    """A line a layer for the terminal: the means over heads."""
    for s in found.subjects:
        heads = s.heads()
        left_out = len(attending(s.encoder)) - len(s.attention)
        if not heads:
            yield f"{s.name}: no attention to look at; layers compared: {', '.join(s.rows)}"
        elif left_out:
            yield f"{s.name}: {left_out} more layers of attention, not of patches to patches, are left out"
        for layer, values in heads.items():
            distance, entropy, divergence = (float(v.mean()) for v in values)
            yield (
                f"{s.name}  {layer:<20} distance {distance:7.2f} px  entropy {entropy:6.3f} nats  "
                f"divergence {divergence:7.4f} nats"
            )
