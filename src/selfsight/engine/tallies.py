"""What is counted between two lines of the tables: means of what objectives log, and where the time goes."""

import math
import time

import torch
from torch import Tensor

from selfsight import distributed
from selfsight.method import Objective


class Sums:
    """The mean of what objectives log between two lines of metrics.csv, kept on the device: no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, objective: Objective) -> None:
        """Adds one objective; the loss of an optimiser other than ``main`` gets a column of its own."""
        name = "loss" if objective.by == ("main",) else f"loss_{'_'.join(objective.by)}"
        for key, value in {name: objective.loss, **objective.log}.items():
            pair = torch.stack([value.detach().double(), torch.ones_like(value, dtype=torch.double)])
            self.kept[key] = self.kept[key] + pair if key in self.kept else pair

    def take(self) -> dict[str, float]:
        """The means over updates and processes; ``loss`` is main's, or the sum where it has none. Begins anew."""
        means = {key: float(distributed.mean(pair[0] / pair[1])) for key, pair in self.kept.items()}
        self.kept = {}
        losses = [value for key, value in means.items() if key.startswith("loss")]
        return {"loss": sum(losses) if losses else math.nan, **means}  # none where each update was left out

    def state(self) -> dict[str, Tensor]:
        """The means over processes of what was counted: each of them goes on from there, and so does any number."""
        if not self.kept:
            return {}
        pairs = distributed.mean(torch.stack([*self.kept.values()])).cpu()
        return {key: pair.clone() for key, pair in zip(self.kept, pairs, strict=True)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.kept = {key: pair.to(self.device) for key, pair in state.items()}


_PARTS = ("data", "render", "step", "rest")


class Timings:
    """Where the time goes: waiting for data, rendering views, stepping; and the rest, which counts for no speed."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.before = 0.0
        self.start = self.last = time.perf_counter()
        self.spent: dict[str, float] = dict.fromkeys(_PARTS, 0.0)
        self.images = 0

    def mark(self, name: str) -> None:
        """Counts the time since the last mark as ``name``."""
        now = time.perf_counter()
        self.spent[name] += now - self.last
        self.last = now

    def skip(self) -> None:
        """Counts the time since the last mark as the rest: a probe, a checkpoint."""
        self.mark("rest")

    def count(self) -> None:
        """One more update."""
        self.images += self.batch

    def total(self) -> float:
        """Seconds of the whole run, earlier parts included."""
        return self.before + time.perf_counter() - self.start

    def take(self, step: int) -> dict[str, float]:
        """A line of timings.csv. Begins anew."""
        whole = sum(self.spent.values()) or 1e-9
        rest = self.spent.pop("rest")
        shares = {f"{name}_share": value / whole for name, value in self.spent.items()}
        speed, self.images = self.images / max(whole - rest, 1e-9), 0
        self.spent = dict.fromkeys(_PARTS, 0.0)
        return {"step": step, "seconds": self.total(), "images_per_second": speed, **shares}
