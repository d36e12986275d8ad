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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from _bench import flags, row, save, turns
from files import files
from selfsight.data.loader import Loader
from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.splits import Chosen
from selfsight.encoders.backbone import Backbone
from selfsight.engine.loop import Execution, train
from selfsight.engine.machine import open_machine
from selfsight.engine.update import Updater
from selfsight.flags import Flags
from selfsight.method import Clock, drive
from selfsight.recipes.assembly import Assembly, assemble

SKIP = 4
"""Updates before the clock runs: compilation and the workers' first batches."""

PUBLISHED = {"barlow_twins": 871.0}
"""Images a second, one H200, https://github.com/galilai-group/stable-pretraining."""


class Stage:
    """One method at one size: what every contender shares."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name, self.batch, self.steps, self.device = name, given.batch, given.steps, given.device
        self.compile = not given.eager
        self.flags = Flags(
            data="none", image_size=given.size, backbone="vit_small_patch16_224", batch_size=given.batch, epochs=1,
            device=given.device, precision=given.precision,
        )  # fmt: skip

    def assembly(self) -> Assembly:
        made = assemble(self.name, self.flags, {}, samples=self.batch * self.steps, native=None)
        made.recipe.method.to(self.device)
        for module in made.recipe.method.modules() if self.compile else ():
            if isinstance(module, Backbone):
                module.compile()
        return made

    def now(self, step: int) -> float:
        """The time before ``step``; at the ends of the stretch that counts, with all work done."""
        if self.device == "cuda" and step in (SKIP, self.steps - 1):
            torch.cuda.synchronize()
        return time.perf_counter()

    def rate(self, stamps: list[float]) -> float:
        return self.batch * (len(stamps) - 1 - SKIP) / (stamps[-1] - stamps[SKIP])


def our_loop(stage: Stage, source: Source, workers: int | None) -> Callable[[], float]:
    """The engine's loop, from its first update to its last."""

    def measure() -> float:
        made, machine, stamps = stage.assembly(), open_machine(stage.flags), list[float]()
        loader = Loader(
            source, made.recipe.views, batch_size=stage.batch, seed=0, workers=workers, pin=stage.device == "cuda"
        )
        step = made.recipe.method.step

        def stamped(batch: Any, clock: Clock) -> Any:
            stamps.append(stage.now(clock.step))
            return step(batch, clock)

        made.recipe.method.step = stamped
        with tempfile.TemporaryDirectory() as folder:
            train(made.recipe, loader, machine, Execution(folder=Path(folder), quiet=True))
        return stage.rate(stamps)

    return measure


def bare_step(stage: Stage, source: Source) -> Callable[[], float]:
    """The same method and optimiser on one batch of views that lies ready."""
    made, machine = stage.assembly(), open_machine(stage.flags)
    loader = Loader(source, made.recipe.views, batch_size=stage.batch, seed=0, workers=0)
    first, views = next(loader.stream(0, 1)), made.recipe.views
    ready = first.images
    ready = ready.to(stage.device) if isinstance(ready, Tensor) else [stack.to(stage.device) for stack in ready]
    batch = views.render(ready, views.plan(first.key), first.key)
    update = Updater(made.recipe, machine, 1)
    loader.close()

    def measure() -> float:
        made.recipe.method.train()
        stamps = []
        for i in range(stage.steps):
            clock = Clock(step=i, steps=stage.steps, epoch=0, epochs=1)
            stamps.append(stage.now(i))
            update.begin(clock, first=True, last=True)
            drive(made.recipe.method.step(batch, clock), update, machine.autocast)
        return stage.rate(stamps)

    return measure


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
            stage = Stage(name, given)
            measures = {"bare step": bare_step(stage, data["decoded"])}
            measures |= {kind: our_loop(stage, source, given.workers) for kind, source in data.items()}
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
