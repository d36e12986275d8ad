"""The training loop: one page, straight-line.

Data goes one way: loader -> views -> method.step -> objective -> optimiser -> (after the yield) -> monitors, journal,
probe, checkpoint.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfsight import distributed
from selfsight.batches import Images
from selfsight.data.loader import Loader, plain_batches
from selfsight.engine import checkpoint
from selfsight.engine.journal import Journal
from selfsight.engine.machine import Machine, average_gradients_, synchronise_
from selfsight.engine.monitors import Monitors, alarm
from selfsight.engine.optimisers import build_optimiser, clip_, set_rates_
from selfsight.engine.progress import ProgressLine
from selfsight.errors import TrainingError
from selfsight.keyed import words
from selfsight.method import Clock, Method, Objective, drive
from selfsight.recipes.recipe import Recipe

MONITOR_EVERY = 5
"""Lines of metrics.csv between two readings of the monitors: a reading costs an eigenvalue problem."""
GIVE_UP = 10
"""Updates in a row with a non-finite loss or gradient after which a run stops."""


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


class Updater:
    """Gives each objective's optimisers their step: the engine's side of a ``yield``."""

    def __init__(self, recipe: Recipe, machine: Machine, accumulate: int) -> None:
        self.specs, self.machine, self.accumulate = recipe.optimisers, machine, accumulate
        named = {name: list(parameters) for name, parameters in recipe.method.trainables().items()}
        if named.keys() != self.specs.keys():
            raise ValueError(f"the method trains {sorted(named)} but the recipe has optimisers {sorted(self.specs)}")
        self.parameters = {name: [p for _, p in pairs] for name, pairs in named.items()}
        self.optimisers = {name: build_optimiser(self.specs[name], pairs) for name, pairs in named.items()}
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "16")
        self.norm = torch.zeros(())
        self.bad = 0
        self.begun: set[str] = set()

    def begin(self, clock: Clock, *, first: bool, last: bool) -> None:
        """Called before each micro-batch."""
        self.clock, self.first, self.last = clock, first, last
        self.begun.clear()

    def __call__(self, objective: Objective) -> bool:
        parameters = [p for name in objective.by for p in self.parameters[name]]
        if self.accumulate > 1 and self.begun & set(objective.by):
            raise TrainingError("this method steps one optimiser twice a batch, which --accumulate cannot split")
        self.begun |= set(objective.by)
        if self.first:
            for name in objective.by:
                self.optimisers[name].zero_grad(set_to_none=True)
        loss = objective.loss / self.accumulate
        torch.autograd.backward(self.scaler.scale(loss), inputs=parameters)
        if not self.last:
            return False
        if self.machine.world > 1:
            average_gradients_(parameters)
        for held in objective.hold:
            held.grad = None
        return all([self._step(name, objective) for name in objective.by])

    def _step(self, name: str, objective: Objective) -> bool:
        optimiser, spec = self.optimisers[name], self.specs[name]
        set_rates_(optimiser, spec, self.clock)
        self.scaler.unscale_(optimiser)
        self.norm = clip_(self.parameters[name], spec)
        if self.machine.device.type == "cpu" and not bool(torch.isfinite(self.norm + objective.loss)):
            self.refuse(float(objective.loss))
            return False
        scale = self.scaler.get_scale()
        self.scaler.step(optimiser)
        self.scaler.update()
        self.bad = 0
        return self.scaler.get_scale() >= scale

    def refuse(self, loss: float) -> None:
        """Counts an update that was not made because its numbers are not finite."""
        self.bad += 1
        if self.bad >= GIVE_UP:
            raise TrainingError(
                f"loss or gradient was not finite for {self.bad} updates up to step {self.clock.step} (loss {loss}); "
                "the last checkpoint is good: lower --lr or use --precision 32 in a new run"
            )


def train(recipe: Recipe, loader: Loader, machine: Machine, how: Execution, probe: Callable[[], float] | None) -> str:
    """Trains ``recipe`` and returns how it ended: ``done``, ``stopped`` (a signal) or ``max-time``."""
    method, views, device = recipe.method, recipe.views, machine.device
    per_epoch, steps = loader.steps_per_epoch, loader.steps_per_epoch * recipe.epochs
    update = Updater(recipe, machine, how.accumulate)
    monitors, sums, step, seconds, best = Monitors(), Sums(device), 0, 0.0, 0.0
    last_path = how.folder / "checkpoints" / "last.pt"
    if how.resume:
        state = checkpoint.load(last_path)
        step, seconds, best = state["step"], state["seconds"], state["best"]
        method.load_state_dict(state["method"])
        for name, optimiser in update.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        update.scaler.load_state_dict(state["scaler"])
        monitors.restore(state["monitors"], lambda x: x.to(device))
        sums.restore(state["sums"])
    elif machine.world > 1:
        synchronise_(method)
    journal = Journal(how.folder, step=step, settings=how.settings, loggers=how.loggers) if machine.first else None
    if journal:
        loader.on_skip = journal.skip
    progress = ProgressLine(steps, step, recipe.batch_size, quiet=how.quiet or not machine.first)
    timings = Timings(seconds, recipe.batch_size)

    def save(name: str = "last") -> None:
        if machine.first:
            checkpoint.save(how.folder / "checkpoints" / f"{name}.pt", {
                "step": step, "steps": steps, "seconds": timings.total(), "best": best, "method": method.state_dict(),
                "optimisers": {name: optimiser.state_dict() for name, optimiser in update.optimisers.items()},
                "scaler": update.scaler.state_dict(), "monitors": monitors.state(), "sums": sums.state(),
            })  # fmt: skip

    sweep = _sweep(recipe, loader, machine)
    resumed_at, began, saved_at, ended = step, time.monotonic(), time.monotonic(), "done"
    method.train()
    with interruption() as interrupted, progress:
        for micro in loader.stream(step, steps):
            timings.mark("data")
            clock = Clock(step=micro.step, steps=steps, epoch=micro.step // per_epoch, epochs=recipe.epochs)
            first, last = micro.micro == 0, micro.micro == how.accumulate - 1
            if first and micro.step % per_epoch == 0 and _prepares(method):
                method.before_epoch(sweep, clock)
            _reseed(loader.seed, micro.step, micro.micro, machine.rank)
            batch = views.render(_to(micro.images, device), _to(views.plan(micro.key), device), micro.key)
            batch = _layout(batch, method.encoder)
            timings.mark("render")
            update.begin(clock, first=first, last=last)

            def hand_over(objective: Objective) -> bool:
                moved = update(objective)
                sums.add(objective, last=update.last)
                monitors.see(objective.watch)
                return moved

            drive(method.step(batch, clock), hand_over, machine.autocast)
            timings.mark("step")
            if not last:
                continue
            step = micro.step + 1
            progress.advance()
            epoch_ends, over = step % per_epoch == 0, step == steps
            if step % how.log_every == 0 or over:
                row = {"step": micro.step, "epoch": clock.epoch, **sums.take(), **_rates(update, clock)}
                if not np.isfinite(row["loss"]) and device.type != "cpu":
                    update.refuse(row["loss"])
                if step % (how.log_every * MONITOR_EVERY) == 0 or over:
                    readings = monitors.read()
                    row |= readings
                    _raise_alarms(monitors.judge(readings, clock.progress), journal, progress, micro.step)
                if journal:
                    journal.add_metrics(row)
                    journal.timings.add(spent := timings.take(micro.step))
                    if spent["data_share"] > 0.5 and step - resumed_at > 5 * how.log_every:
                        _raise_alarms([alarm("data_wait", spent["data_share"])], journal, progress, micro.step)
                progress.show(row)
            if probe and how.probe_every and ((epoch_ends and (clock.epoch + 1) % how.probe_every == 0) or over):
                score = _probe(method, probe)
                if journal:
                    journal.add_metrics({"step": micro.step, "epoch": clock.epoch, "knn": score})
                progress.show({"knn": score})
                timings.skip()
                if score > best:
                    best = score
                    save("best")
            waited = time.monotonic() - began
            if over:
                break
            stop, late, due = _agree(
                machine, step, interrupted(), how.max_seconds is not None and waited > how.max_seconds,
                time.monotonic() - saved_at > how.save_seconds,
            )  # fmt: skip
            if stop or late:
                ended = "stopped" if stop else "max-time"
                break
            if due:
                save()
                saved_at = time.monotonic()
        save()
        loader.close()
    return ended


class Sums:
    """The mean of what objectives log between two lines of metrics.csv, kept on the device: no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: dict[str, Tensor] = {}
        self.updates = 0

    @torch.no_grad()
    def add(self, objective: Objective, *, last: bool) -> None:
        for name, value in {"loss": objective.loss, **objective.log}.items():
            key = name if objective.by == ("main",) or name != "loss" else f"loss_{'_'.join(objective.by)}"
            pair = torch.stack([value.detach().double().to(self.device), torch.ones((), device=self.device).double()])
            self.kept[key] = self.kept[key] + pair if key in self.kept else pair

    def take(self) -> dict[str, float]:
        means = {name: distributed.mean(pair[0] / pair[1]) for name, pair in self.kept.items()}
        self.kept = {}
        out = {name: float(value) for name, value in means.items()}
        return {"loss": sum(v for k, v in out.items() if k.startswith("loss")), **out}

    def state(self) -> dict[str, Tensor]:
        return {name: pair.cpu() for name, pair in self.kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.kept = {name: pair.to(self.device) for name, pair in state.items()}


class Timings:
    """Where the time goes: waiting for data, rendering views, stepping."""

    def __init__(self, before: float, batch: int) -> None:
        self.before, self.batch = before, batch
        self.start = self.last = time.perf_counter()
        self.spent = {"data": 0.0, "render": 0.0, "step": 0.0}
        self.taken = 0

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[name] += now - self.last
        self.last = now

    def skip(self) -> None:
        """Leaves out what passed since the last mark (a probe)."""
        self.last = time.perf_counter()

    def total(self) -> float:
        return self.before + time.perf_counter() - self.start

    def take(self, step: int) -> dict[str, float]:
        whole = sum(self.spent.values()) or 1e-9
        shares = {f"{name}_share": value / whole for name, value in self.spent.items()}
        updates, self.taken = step + 1 - self.taken if self.taken else 0, step + 1
        self.spent = dict.fromkeys(self.spent, 0.0)
        return {"step": step, "seconds": self.total(), "images_per_second": updates * self.batch / whole, **shares}


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a question that the loop asks; the second one ends at once."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever started it handles signals
        before = {}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agree(machine: Machine, step: int, *wishes: bool) -> list[bool]:
    """What any process wishes, all do; asked every tenth update, since it is a message to all."""
    if machine.world == 1:
        return list(wishes)
    if step % 10:
        return [False] * len(wishes)
    asked = torch.tensor(wishes, dtype=torch.int32, device=machine.device)
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    return [bool(x) for x in asked.tolist()]


def _reseed(seed: int, step: int, micro: int, rank: int) -> None:
    """What is random outside the plan (dropout, drop path) depends on (seed, step, micro-step, rank) alone."""
    place = np.array([step], dtype=np.uint64), np.array([micro * 65536 + rank], dtype=np.uint64)
    torch.manual_seed(int(words(seed, *place, "step", 1)[0, 0]))


def _to(x: Any, device: torch.device) -> Any:
    """Tensors, their lists and their mappings, moved without waiting."""
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    if isinstance(x, dict):
        return {key: _to(value, device) for key, value in x.items()}
    return [_to(part, device) for part in x]


def _layout(batch: Any, encoder: Any) -> Any:
    """Channels-last where the encoder asks for it."""
    if not getattr(encoder, "channels_last", False):
        return batch

    def convert(x: Any) -> Any:
        if isinstance(x, Tensor):
            floats = x.ndim == 4 and x.is_floating_point()
            return x.contiguous(memory_format=torch.channels_last) if floats else x
        return tuple(convert(part) for part in x)

    return type(batch)(*(convert(part) for part in batch))


def _prepares(method: Method) -> bool:
    return type(method).before_epoch is not Method.before_epoch


def _sweep(recipe: Recipe, loader: Loader, machine: Machine) -> Callable[[], Iterator[Images]]:
    def sweep() -> Iterator[Images]:
        plain = recipe.views.plain
        share = max(recipe.batch_size // machine.world, 1)
        for images, key in plain_batches(
            loader.source, plain, batch_size=share, rank=machine.rank, world=machine.world, cache_dir=loader.cache_dir
        ):
            yield plain.render(_to(images, machine.device), _to(plain.plan(key), machine.device), key)

    return sweep


def _rates(update: Updater, clock: Clock) -> dict[str, float]:
    spec = next(iter(update.specs.values()))
    return {"lr": spec.lr(clock), "weight_decay": spec.weight_decay(clock), "grad_norm": float(update.norm)}


def _raise_alarms(alarms: list[Any], journal: Journal | None, progress: ProgressLine, step: int) -> None:
    for found in alarms:
        if journal:
            journal.alarms.add({"step": step, **vars(found)})
        progress.say(f"step {step}: {found.name} ({found.value:.3g}): {found.cause}; {found.advice}", once=found.name)


def _probe(method: nn.Module, probe: Callable[[], float]) -> float:
    method.eval()
    score = probe()
    method.train()
    return score
