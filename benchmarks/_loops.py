"""The two loops that benchmarks time: the engine's, and the bare step of the same method and optimiser."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsight.data.loader import Loader
from selfsight.data.protocol import Source
from selfsight.engine.loop import Execution, train
from selfsight.engine.machine import Machine, open_machine
from selfsight.engine.update import Updater
from selfsight.flags import Flags
from selfsight.method import Clock, drive
from selfsight.pretraining import settle
from selfsight.recipes.assembly import Assembly, assemble


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One method at one size: what every contender shares.

    Attributes:
        name: the recipe.
        flags: as for a training; ``batch_size`` is given.
        steps: updates of a turn.
        skip: updates before the clock runs; compilation and the workers' first batches lie there.
        native: channels and size of the images, where all have one size.
        log_every: updates between two lines of the journal.
    """

    name: str
    flags: Flags
    steps: int
    skip: int
    native: tuple[int, int, int] | None = None
    log_every: int = Execution.log_every

    def __post_init__(self) -> None:
        if self.steps < self.skip + 2:
            raise SystemExit(f"--steps {self.steps}: the first {self.skip} are not timed; give {self.skip + 2} or more")

    @property
    def batch(self) -> int:
        """Images of one update."""
        assert self.flags.batch_size is not None
        return self.flags.batch_size

    def open(self) -> tuple[Assembly, Machine]:
        """The method as ``selfsight pretrain`` would train it, on its device."""
        made = assemble(self.name, self.flags, {}, samples=self.batch * self.steps, native=self.native)
        machine = open_machine(self.flags)
        settle(made, machine, compiled=self.flags.compile)
        return made, machine

    def now(self, step: int) -> float:
        """The time before ``step``; at the ends of the stretch that counts, with all work done."""
        if step in (self.skip, self.steps - 1) and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def rate(self, stamps: list[float]) -> float:
        """Images a second between the steps that began at ``stamps``, the first ones apart."""
        return self.batch * (len(stamps) - 1 - self.skip) / (stamps[-1] - stamps[self.skip])


def our_loop(stage: Stage, source: Source, workers: int | None = None) -> Callable[[], float]:
    """The engine's loop, from its first update to its last: loader, views, monitors and journal included."""

    def measure() -> float:
        made, machine = stage.open()
        pin = machine.device.type == "cuda"
        loader = Loader(source, made.recipe.views, batch_size=stage.batch, seed=0, workers=workers, pin=pin)
        stamps, step = list[float](), made.recipe.method.step

        def stamped(batch: Any, clock: Clock) -> Any:
            stamps.append(stage.now(clock.step))
            return step(batch, clock)

        made.recipe.method.step = stamped
        with tempfile.TemporaryDirectory() as folder:
            how = Execution(folder=Path(folder), quiet=True, log_every=stage.log_every)
            train(made.recipe, loader, machine, how)
        return stage.rate(stamps)

    return measure


def bare_step(stage: Stage, source: Source) -> Callable[[], float]:
    """The same method and optimiser on one batch of views that lies ready."""
    made, machine = stage.open()
    method, views = made.recipe.method, made.recipe.views
    loader = Loader(source, views, batch_size=stage.batch, seed=0, workers=0)
    first = next(loader.stream(0, 1))
    loader.close()
    images = first.images
    ready = images.to(machine.device) if isinstance(images, Tensor) else [x.to(machine.device) for x in images]
    batch = views.render(ready, views.plan(first.key), first.key)
    if getattr(made.encoder, "channels_last", False):
        batch = type(batch)(*(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in batch))
    update = Updater(made.recipe, machine, 1)

    def measure() -> float:
        method.train()
        stamps = list[float]()
        for i in range(stage.steps):
            clock = Clock(step=i, steps=stage.steps, epoch=0, epochs=1)
            stamps.append(stage.now(i))
            update.begin(clock, first=True, last=True)
            drive(method.step(batch, clock), update, machine.autocast)
        return stage.rate(stamps)

    return measure
