"""Barlow Twins and DINO with ViT-S/16 at 224 px: images a second of whole training loops beside the bare compiled step.

    python benchmarks/vit_step.py --device cuda [--data ../shared/data/caltech101-70] [--batch 256] [--steps 60]

The bare step is forward, backward and optimiser of the compiled method on views that lie ready. Ours is the engine's
loop at the recipe's own settings with ``--compile``: once over JPEG files that workers decode and cut, once over
decoded images in memory. stable-pretraining publishes 871 images/s for Barlow Twins with this encoder and two 224 px
views on one H200: a figure of its own machine, given beside ours and not measured here. On a CPU the script shows that
it runs (``--batch 8 --steps 7 --size 32 --eager``); its figures mean something on a GPU alone.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from _bench import flags, row, save, turns
from _loops import Stage, bare_step, our_loop
from files import files
from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.splits import Chosen
from selfsight.flags import Flags

SKIP = 4
"""Updates before the clock runs: compilation and the workers' first batches."""

PUBLISHED = {"barlow_twins": 871.0}
"""Images a second, one H200, https://github.com/galilai-group/stable-pretraining."""


def stage(name: str, given: argparse.Namespace) -> Stage:
    run = Flags(
        data="none", image_size=given.size, backbone="vit_small_patch16_224", batch_size=given.batch, epochs=1,
        device=given.device, precision=given.precision, compile=not given.eager,
    )  # fmt: skip
    return Stage(name=name, flags=run, steps=given.steps, skip=SKIP)


def sources(data: Path, folder: Path, count: int) -> tuple[dict[str, Source], str]:
    """The photographs over and over, ``count`` of them: as JPEG files, and decoded to 256 px in one array."""
    photos = folder / "photos"
    photos.mkdir()
    paths, what = files(data, photos)
    decoded = [np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), (256, 256))) for path in paths]
    np.save(folder / "decoded.npy", np.stack(decoded))
    opened = {"JPEG files": open_data(photos, split="all"), "decoded": open_data(folder / "decoded.npy", split="all")}
    over_and_over = {k: Chosen(x, np.resize(np.arange(len(x)), count), name=x.name) for k, x in opened.items()}
    return over_and_over, what


def main() -> None:
    """Measures both methods, each beside its bare step."""
    parser = flags(__doc__, "vit_step")
    parser.add_argument("methods", nargs="*", default=["barlow_twins", "dino"])
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SELFSIGHT_DATA", "../shared/data")) / "caltech101-70"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, help="default: as `selfsight pretrain`")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    given = parser.parse_args()
    rows, rates = [], {}
    with tempfile.TemporaryDirectory() as top:
        data, what = sources(given.data, Path(top), given.batch * given.steps)
        for name in given.methods:
            contest = stage(name, given)
            measures = {"bare step": bare_step(contest, data["decoded"])}
            measures |= {kind: our_loop(contest, source, given.workers) for kind, source in data.items()}
            found = turns(measures, rounds=min(given.rounds, 3), warm=False)
            for kind, goal in (("JPEG files", 3.0), ("decoded", 5.0)):
                title, ours = f"{name} ViT-S/16, {given.size} px, batch {given.batch}, {kind}", found[kind]
                rows.append(row(title, "images/s", ours, "the bare step", found["bare step"], target=0.9))
                if name in PUBLISHED and given.device == "cuda":
                    rows.append(row(title, "images/s", ours, "published", [PUBLISHED[name]] * len(ours), target=goal))
            rates[name] = found
    save("vit_step", given, rows, rates=rates, data=what, compiled=not given.eager)


if __name__ == "__main__":
    main()
