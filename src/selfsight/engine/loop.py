"""The training loop: one page, straight-line.

Data goes one way: loader -> views -> method.step -> objective -> optimiser -> (after the yield) -> monitors, journal,
probe, checkpoint.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from selfsight.batches import Images
from selfsight.data.loader import Loader, plain_batches
from selfsight.engine import checkpoint
from selfsight.engine.diagnosis import diagnose
from selfsight.engine.launch import is_orphan
from selfsight.engine.machine import Machine, synchronise_
from selfsight.engine.observer import Observer
from selfsight.engine.signals import interruption
from selfsight.engine.update import GIVE_UP, Updater
from selfsight.errors import ToldElsewhere, TrainingError
from selfsight.keyed import words
from selfsight.method import Clock, Method, Objective, drive
from selfsight.recipes.recipe import Recipe

Ending = Literal["done", "stopped", "max-time"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out: none of it changes what is learnt."""

    folder: Path
    accumulate: int = 1
    max_seconds: float | None = None
    probe_every: int = 0
    save_seconds: float = 300.0
    log_every: int = 20
    resume: bool = False
    loggers: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False


def train(
    recipe: Recipe, loader: Loader, machine: Machine, how: Execution, probe: Callable[[], float | None] | None = None
) -> Ending:
    """Trains ``recipe``; returns how it ended: the whole length, a signal, or ``max_seconds``. All are saved."""
    method, views, device = recipe.method, recipe.views, machine.device
    per_epoch, steps = loader.steps_per_epoch, loader.steps_per_epoch * recipe.epochs
    update = Updater(recipe, machine, how.accumulate, looks=how.log_every == 1)
    observer = Observer(machine, batch=recipe.batch_size, steps=steps, log_every=how.log_every, quiet=how.quiet)
    saved = _Saved(how.folder / "checkpoints", method, update, observer, machine)
    if how.resume:
        saved.restore()
    elif machine.world > 1:
        synchronise_(method)
    observer.open(how.folder, step=saved.step, settings=how.settings, loggers=how.loggers)
    loader.on_skip = observer.skip
    timings, sweep, agree = observer.timings, _sweep(recipe, loader, machine), _Agreement(machine)
    began = last_save = time.monotonic()
    ended: Ending = "done"

    def hand_over(objective: Objective) -> bool:
        moved = update(objective)
        observer.see(objective, counts=not update.failed)
        return moved

    method.train()
    with interruption() as interrupted, observer.progress, closing(observer):
        for micro in loader.stream(saved.step, steps):
            timings.mark("data")
            clock = Clock(step=micro.step, steps=steps, epoch=micro.step // per_epoch, epochs=recipe.epochs)
            first, last = micro.micro == 0, micro.micro == how.accumulate - 1
            if first and micro.step % per_epoch == 0 and type(method).before_epoch is not Method.before_epoch:
                method.before_epoch(sweep, clock)
            _reseed(loader.seed, micro.step, micro.micro, machine.rank)
            batch = views.render(_to(micro.images, device), views.plan(micro.key), micro.key)
            batch = _layout(batch, method.encoder)
            timings.mark("render")
            update.begin(clock, first=first, last=last)
            drive(method.step(batch, clock), hand_over, machine.autocast)
            timings.mark("step")
            if not last:
                continue
            if update.failed:
                _reseed(loader.seed, micro.step, micro.micro, machine.rank)
                saved.left_out(clock, batch)

            timings.count()
            saved.step = micro.step + 1
            observer.after_update(clock, update)
            timings.mark("step")  # on a GPU reading the numbers waits for the steps
            over = saved.step == steps
            if probe and how.probe_every and (over or saved.step % (per_epoch * how.probe_every) == 0):
                score = _in_evaluation(method, probe)
                observer.score(clock, score)
                saved.keep_best(score)
            passed = time.monotonic() - began
            stop, late, due = agree(
                interrupted() or is_orphan(),
                how.max_seconds is not None and passed > how.max_seconds,
                time.monotonic() - last_save > how.save_seconds,
            )
            if over or stop or late:
                ended = "done" if over else "stopped" if stop else "max-time"
                break
            if due:
                saved.write("last")
                last_save = time.monotonic()
                timings.skip()
        if not saved.write("last"):
            update.refuse()
        if machine.world > 1:
            dist.barrier()  # nobody leaves while the first is saving
    loader.close()
    return ended


class _Saved:
    """What a checkpoint holds: the count of updates made and the state of everything that has one."""

    def __init__(self, folder: Path, method: Method, update: Updater, observer: Observer, machine: Machine) -> None:
        self.folder, self.method, self.update, self.observer = folder, method, update, observer
        self.writes = machine.first
        self.step = 0
        self.best = 0.0

    def write(self, name: Literal["last", "best"]) -> bool:
        """The first process saves, and all call it together; False where nothing sound is left to save."""
        if name == "last":
            self.observer.share_skips()
        if not self.update.looks and not self.update.sound():
            self.observer.tell("not saved: a gradient was not finite; the last good checkpoint stays")
            return False
        watched = self.observer.state()
        if self.writes:
            state = {
                "step": self.step,
                "steps": self.observer.steps,
                "best": self.best,
                "method": self.method.state_dict(),
                "update": self.update.state(),
                "observer": watched,
            }
            checkpoint.save(self.folder / f"{name}.pt", state)
        return True

    def left_out(self, clock: Clock, batch: Any) -> None:
        """Says why an update was left out; ends the run where no later one can be good, or too many were."""
        found = diagnose(self.method, batch, clock, self.update.machine, self.update.parameters)
        loss = float(sum(self.update.losses.values()))
        self.observer.left_out(clock, found, loss)
        before = self.update.in_a_row
        if found.lasts or before + 1 >= GIVE_UP:
            kept = "the last good checkpoint is kept" if (self.folder / "last.pt").exists() else "nothing was saved yet"
            steps = f"steps {clock.step - before} to {clock.step}" if before else f"step {clock.step}"
            text = f"{steps}: not finite: {found.where} (loss {loss:g}); {kept}; {found.advice}"
            raise TrainingError(text) if self.writes else ToldElsewhere(text)

    def restore(self) -> None:
        path = self.folder / "last.pt"
        state = checkpoint.load(path)
        checkpoint.fill_(self.method, state, path)
        self.step, self.best = state["step"], state["best"]
        self.update.restore(state["update"])
        self.observer.restore(state["observer"])

    def keep_best(self, score: float | None) -> None:
        if self.update.machine.world > 1:  # all save or none: another kind of processor may have another last digit
            scores = [score]
            dist.broadcast_object_list(scores, src=0)
            score = scores[0]
        if score is not None and score > self.best:
            self.best = score
            self.write("best")


class _Agreement:
    """What any process wishes, all do. It takes a message to all: at every update that takes long, else every tenth."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.every, self.calls, self.last = 1, 0, time.monotonic()

    def __call__(self, *wishes: bool) -> list[bool]:
        if self.machine.world == 1:
            return list(wishes)
        self.calls += 1
        if self.calls % self.every:
            return [False] * len(wishes)
        now = time.monotonic()
        slow, self.last = now - self.last > self.every, now  # a second an update
        asked = torch.tensor([*wishes, slow], dtype=torch.int32, device=self.machine.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        *agreed, slow = (bool(x) for x in asked.tolist())
        self.every = 1 if slow else 10
        return agreed


def _reseed(seed: int, step: int, micro: int, rank: int) -> None:
    """What is random outside the plan (dropout, drop path) depends on (seed, step, micro-step, rank) alone."""
    place = np.array([step], dtype=np.uint64), np.array([micro * 65536 + rank], dtype=np.uint64)
    torch.manual_seed(int(words(seed, *place, "step", 1)[0, 0]))


def _in_evaluation(method: Method, probe: Callable[[], float | None]) -> float | None:
    """The probe's score; afterwards the method trains again."""
    method.eval()
    score = probe()
    method.train()
    return score


def _to(x: Any, device: torch.device) -> Any:
    """Images, or the stacks of their cuts, moved without waiting; the plan stays where it was drawn and is read."""
    return x.to(device, non_blocking=True) if isinstance(x, Tensor) else [_to(part, device) for part in x]


def _layout(batch: Any, encoder: Any) -> Any:
    """Channels-last where the encoder asks for it."""
    if not getattr(encoder, "channels_last", False):
        return batch

    def convert(x: Any) -> Any:
        if isinstance(x, Tensor):
            picture = x.ndim == 4 and x.is_floating_point()
            return x.contiguous(memory_format=torch.channels_last) if picture else x
        return tuple(convert(part) for part in x)

    return type(batch)(*(convert(part) for part in batch))


def _sweep(recipe: Recipe, loader: Loader, machine: Machine) -> Callable[[], Iterator[Images]]:
    def sweep() -> Iterator[Images]:
        plain = recipe.views.plain
        share = max(recipe.batch_size // machine.world, 1)
        for images, key in plain_batches(
            loader.source, plain, batch_size=share, rank=machine.rank, world=machine.world, cache_dir=loader.cache_dir
        ):
            yield plain.render(_to(images, machine.device), plain.plan(key), key)

    return sweep
