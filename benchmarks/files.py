"""From JPEG files to two 224 px views of SimCLR's whole recipe, on one core: images a second.

    python benchmarks/files.py [--data ../shared/data/caltech101-70]

lightly opens each file with Pillow and runs its transform, as its examples do. Ours in two parts: what a worker does
(decode once, cut and resize the boxes of both views, as uint8), and that with everything else rendered on the CPU, in
batches; on a GPU's machine the second part is the GPU's. "Decoding alone" is Pillow's, with two box-resizes: the least
that any of them must do.
"""

import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image

from _bench import Work, flags, in_turns, row, save
from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.workers import Chunk, Cutting, key_of
from selfsight.data.world import render
from selfsight.views import augment
from selfsight.views.pipelines import Pipeline, two_views
from selfsight.views.view import IMAGENET

SIZE, FILES, CHUNK = 224, 256, 32


def files(data: Path, folder: Path) -> tuple[list[Path], str]:
    """Photographs of ``data`` as files of their own bytes; scenes of the world where there is no such data."""
    tables = sorted(data.rglob("*.parquet")) if data.is_dir() else []
    if tables:
        import pyarrow.parquet as pq  # noqa: PLC0415

        column = pq.read_table(tables[0], columns=["image"])["image"][:FILES].to_pylist()
        contents, what = [item["bytes"] for item in column], data.name
    else:
        images = render(np.arange(FILES), size=256).image.transpose(0, 2, 3, 1)
        contents, what = [_jpeg(image) for image in images], "scenes of the world, 256 px"
    paths = [folder / f"{i:04}.jpg" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths, what


def _jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def chunks(n: int) -> Any:
    """Positions of one call after the other, epoch after epoch."""
    epoch = 0
    while True:
        for a in range(0, n - CHUNK + 1, CHUNK):
            yield Chunk(np.arange(a, a + CHUNK), epoch)
        epoch += 1


def ours(source: Source, views: Pipeline[Any], *, on: str | None = None) -> Work:
    cutting, todo = Cutting(source, views, seed=0, substitute=True), chunks(len(source))

    def work() -> int:
        chunk = next(todo)
        cutout = cutting[chunk]
        assert not isinstance(cutout, Exception)
        if on:
            key = key_of(0, chunk.epoch, cutout.positions)
            views.render([stack.to(on) for stack in cutout.stacks], views.plan(key), key)
        return CHUNK

    return work


def with_lightly(paths: list[Path]) -> Work:
    transform, todo = SimCLRTransform(input_size=SIZE), chunks(len(paths))

    def work() -> int:
        for i in next(todo).positions:
            with Image.open(paths[i]) as image:
                transform(image.convert("RGB"))
        return CHUNK

    return work


def least(paths: list[Path]) -> Work:
    todo, random = chunks(len(paths)), np.random.default_rng(0)

    def work() -> int:
        for i in next(todo).positions:
            with Image.open(paths[i]) as image:
                whole = image.convert("RGB")
            for _ in range(2):
                side = np.sqrt(random.uniform(0.08, 1) * whole.width * whole.height)
                w, h = min(side, whole.width), min(side, whole.height)
                x, y = random.uniform(0, whole.width - w), random.uniform(0, whole.height - h)
                whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
        return CHUNK

    return work


def main() -> None:
    """Writes the files to a temporary folder and measures."""
    parser = flags(__doc__, "files")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SELFSIGHT_DATA", "../shared/data")) / "caltech101-70"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = replace(augment.simclr(SIZE), normalise=IMAGENET)
    views = {how: two_views(replace(recipe, interpolation=how)) for how in ("bilinear", "bicubic")}
    with tempfile.TemporaryDirectory() as top:
        paths, what = files(given.data, Path(top))
        source = open_data(top, split="all")
        contenders = {
            "bilinear": ours(source, views["bilinear"]),
            "bicubic": ours(source, views["bicubic"]),
            "whole": ours(source, views["bilinear"], on=given.device),
            "lightly": with_lightly(paths),
            "decoding alone": least(paths),
        }
        rates = in_turns(contenders, rounds=given.rounds, seconds=2.0)
        sizes = np.array([Image.open(path).size for path in paths]).mean(0).round().astype(int).tolist()

    def line(name: str, words: str, target: float | None = None, peer: str = "lightly") -> dict[str, Any]:
        return row(f"JPEG to two 224 px views: {words}", "images/s", rates[name], peer, rates[peer], target=target)

    rows = [
        line("bilinear", "worker, bilinear", 7.0),
        line("bicubic", "worker, bicubic", 6.0),
        line("whole", "all on one core, bilinear", 2.5),
        line("bilinear", "worker, bilinear", None, "decoding alone"),
    ]
    save("files", given, rows, data={"what": what, "files": len(paths), "mean_size": sizes})


if __name__ == "__main__":
    main()
