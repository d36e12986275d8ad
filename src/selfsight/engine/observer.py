"""What watches a run: tallies, monitors, journal and the live line, behind four calls of the loop."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist

from selfsight.engine.diagnosis import Finding
from selfsight.engine.journal import Journal
from selfsight.engine.machine import Machine
from selfsight.engine.monitors import Alarm, Monitors, alarm
from selfsight.engine.progress import ProgressLine
from selfsight.engine.tallies import Sums, Timings
from selfsight.engine.update import Updater
from selfsight.method import Clock, Objective

MONITOR_EVERY = 5
"""Lines of metrics.csv between two readings of the monitors: a reading costs an eigenvalue problem."""
STALL = 0.5
"""Share of the time spent waiting for images above which the run says so."""


class Observer:
    """Sees every objective, writes every ``log_every`` updates; nothing that it does changes a step."""

    def __init__(self, machine: Machine, *, batch: int, steps: int, log_every: int, quiet: bool) -> None:
        self.machine, self.batch, self.steps, self.log_every = machine, batch, steps, log_every
        self.quiet = quiet or not machine.first
        self.monitors, self.sums, self.timings = Monitors(), Sums(machine.device), Timings(batch)
        self.journal: Journal | None = None
        self.unshared: list[tuple[int, str, str]] = []

    def open(self, folder: Path, *, step: int, settings: Mapping[str, Any], loggers: tuple[str, ...]) -> None:
        """Begins to write, keeping what an earlier part of the run wrote about updates before ``step``."""
        self.opened_at = step
        self.progress = ProgressLine(self.steps, step, self.batch, quiet=self.quiet)
        if self.machine.first:
            self.journal = Journal(folder, step=step, settings=settings, loggers=loggers)

    def skip(self, position: int, where: str, reason: str) -> None:
        """Takes note of an image that could not be read."""
        if self.journal:
            self.journal.skip(position, where, reason)
        else:
            self.unshared.append((position, where, reason))

    def share_skips(self) -> None:
        """Gives the first process what the others could not read; all call it together."""
        if self.machine.world == 1:
            return
        everyone: list[list[tuple[int, str, str]]] = [[]] * self.machine.world
        dist.all_gather_object(everyone, self.unshared)
        self.unshared.clear()
        if self.journal:
            for skip in chain.from_iterable(everyone):
                self.journal.skip(*skip)

    def tell(self, text: str) -> None:
        """A line for the person who watches."""
        self.progress.say(text)

    def see(self, objective: Objective, *, counts: bool = True) -> None:
        """Takes one objective's numbers and what it hands over to the monitors, unless its update was left out."""
        if counts:
            self.sums.add(objective)
            self.monitors.see(objective.watch)

    def after_update(self, clock: Clock, update: Updater) -> None:
        """Writes and shows what is due after an update."""
        self.progress.advance()
        done = clock.step + 1
        if done % self.log_every and done != clock.steps:
            return
        row: dict[str, Any] = {"step": clock.step, "epoch": clock.epoch, **self.sums.take(), **update.rates()}
        update.refuse()
        spent = self.timings.take(clock.step)
        alarms: list[Alarm] = []
        if done % (self.log_every * MONITOR_EVERY) == 0 or done == clock.steps:
            readings = self.monitors.read()
            row |= readings
            alarms = self.monitors.judge(readings, clock.progress)
            if spent["data_share"] > STALL and done - self.opened_at > 2 * self.log_every * MONITOR_EVERY:
                alarms.append(alarm("data_wait", spent["data_share"]))
        if self.journal:
            self.journal.add_metrics(row)
            self.journal.timings.add(spent)
        for found in alarms:
            self._raise(found, clock.step)
        self.progress.show(row)

    def left_out(self, clock: Clock, found: Finding, loss: float) -> None:
        """Writes down that an update was left out, and where its loss or gradient stopped being finite."""
        if self.journal:
            cause = f"not finite: {found.where}; the update was left out"
            self._raise(Alarm("not_finite", loss, cause, found.advice), clock.step)

    def score(self, clock: Clock, knn: float | None) -> None:
        """Takes the probe's score, if it has one."""
        if knn is None:
            text = "no kNN: none of the images that the probe asks, or that answer, can be read; training goes on"
            self.progress.say(text, once="probe")
        else:
            if self.journal:
                self.journal.add_metrics({"step": clock.step, "epoch": clock.epoch, "knn": knn})
            self.progress.show({"knn": knn})
        self.timings.skip()

    def close(self) -> None:
        """Ends the loggers, however the run ended."""
        if self.journal:
            self.journal.close()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the same numbers; all processes call it together."""
        return {"monitors": self.monitors.state(), "sums": self.sums.state(), "seconds": self.timings.total()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.monitors.restore(state["monitors"], lambda x: x.to(self.machine.device))
        self.sums.restore(state["sums"])
        self.timings.before = state["seconds"]

    def _raise(self, found: Alarm, step: int) -> None:
        if self.journal:
            self.journal.alarms.add({"step": step, **vars(found)})
        text = f"step {step}: {found.name} ({found.value:.3g}): {found.cause}; {found.advice}"
        self.progress.say(text, once=found.name)
