"""The live line: images/s, time left, loss, rank of the features, last kNN; plain lines where there is no terminal."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 30.0
"""Between two plain lines where there is no terminal."""


class ProgressLine:
    """What a run says while it runs."""

    def __init__(self, steps: int, done: int, batch: int, *, quiet: bool = False) -> None:
        self.steps, self.done, self.batch, self.quiet = steps, done, batch, quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = not quiet and self.console.is_terminal
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self.task: TaskID | None = None
        self.began = self.printed = time.monotonic()
        self.began_at = done
        self.shown: dict[str, float] = {}
        self.said: set[str] = set()

    def __enter__(self) -> "ProgressLine":
        if self.live:
            self.task = self.bar.add_task("", total=self.steps, completed=self.done)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.bar.stop()

    def advance(self) -> None:
        self.done += 1
        if self.task is not None:
            self.bar.update(self.task, completed=self.done)

    def show(self, row: Mapping[str, float]) -> None:
        """New numbers for the line."""
        self.shown |= {k: row[k] for k in ("loss", "effective_rank", "knn") if k in row}
        now = time.monotonic()
        speed = (self.done - self.began_at) * self.batch / max(now - self.began, 1e-9)
        left = (self.steps - self.done) * self.batch / max(speed, 1e-9)
        words = [f"{speed:,.0f} images/s"]
        words += [f"loss {self.shown['loss']:.4f}"] if "loss" in self.shown else []
        words += [f"rank {self.shown['effective_rank']:.0f}"] if "effective_rank" in self.shown else []
        words += [f"kNN {self.shown['knn']:.1%}"] if "knn" in self.shown else []
        if self.task is not None:
            self.bar.update(self.task, description="  ".join(words))
        elif not self.quiet and (now - self.printed > QUIET_SECONDS or self.done == self.steps or "knn" in row):
            self.printed = now
            self.console.print(f"step {self.done}/{self.steps}  {left / 60:.1f} min left  " + "  ".join(words))

    def say(self, text: str, *, once: str = "") -> None:
        """A message of its own line; with ``once``, only the first of that name."""
        if self.quiet or (once and once in self.said):
            return
        self.said.add(once)
        self.console.print(f"[bold yellow]![/] {text}" if self.live else f"! {text}", markup=self.live)
