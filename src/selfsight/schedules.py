"""Schedules: pure functions of the clock. Values change with every update, not every epoch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfsight.method import Clock


@dataclass(frozen=True)
class Curve:
    """A schedule that knows its peak, so that one flag (``--lr``) can move the whole of it.

    >>> half = warmup_cosine(0.3, warmup_epochs=10).with_peak(0.15)
    >>> half(Clock(step=100, steps=1000, epoch=10, epochs=100)), str(half)
    (0.15, 'warm-up 10 epochs (at most a tenth) to 0.15, cosine')
    """

    shape: Callable[[Clock], float]
    peak: float
    words: Callable[[float], str]
    """What it says of itself, for a scale."""
    scale: float = 1.0

    def __call__(self, clock: Clock) -> float:
        return self.scale * self.shape(clock)

    def with_peak(self, peak: float) -> "Curve":
        """The same curve, scaled as a whole so that its peak is ``peak``."""
        if self.peak == 0:
            raise ValueError("a schedule that is zero everywhere has no peak to move")
        scale = peak / self.peak
        return replace(self, peak=peak, scale=self.scale * scale)

    def __str__(self) -> str:
        return self.words(self.scale)


def constant(value: float) -> Curve:
    """``value`` at all times."""
    return Curve(lambda clock: value, abs(value), lambda scale: f"constant {scale * value:g}")


def linear(start: float, end: float, *, epochs: float | None = None) -> Curve:
    """A straight line from ``start`` to ``end`` over the first ``epochs`` (default: all of them), then ``end``."""

    def at(clock: Clock) -> float:
        span = clock.steps if epochs is None else epochs * clock.steps_per_epoch
        return start + (end - start) * min(clock.step / span, 1.0) if span else end

    over = "" if epochs is None else f" over {epochs:g} epochs"
    return Curve(at, max(abs(start), abs(end)), lambda scale: f"linear {scale * start:g} -> {scale * end:g}{over}")


def cosine(start: float, end: float, *, share: float = 1.0) -> Curve:
    r"""Half a cosine over the training or its first ``share``: ``end + (start - end)(1 + cos(pi k / K)) / 2``."""

    def at(clock: Clock) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * min(clock.progress / share, 1.0))) / 2

    over = "" if share == 1 else f" over {share:.3g} of the training"
    return Curve(at, max(abs(start), abs(end)), lambda scale: f"cosine {scale * start:g} -> {scale * end:g}{over}")


def warmup_cosine(
    peak: float, *, warmup_epochs: float, start: float = 0.0, end: float = 0.0, parts: float = 10
) -> Curve:
    """Linear from ``start`` to ``peak`` over ``warmup_epochs``, then half a cosine to ``end``.

    The warm-up takes at most one of ``parts`` equal parts of the training, so that a short run still reaches its peak:
    by default one shorter than ten warm-ups warms up for a tenth of itself.
    """

    def at(clock: Clock) -> float:
        warmup = min(warmup_epochs * clock.steps_per_epoch, clock.steps / parts)
        if clock.step < warmup:
            return start + (peak - start) * clock.step / warmup
        rest = (clock.step - warmup) / max(clock.steps - warmup, 1)
        return end + (peak - end) * (1 + math.cos(math.pi * min(rest, 1.0))) / 2

    def words(scale: float) -> str:
        tail = f" -> {scale * end:g}" if end else ""
        share = "a tenth" if parts == 10 else f"{1 / parts:.0%}"
        return f"warm-up {warmup_epochs:g} epochs (at most {share}) to {scale * peak:g}, cosine{tail}"

    return Curve(at, peak, words)


def steps(peak: float, *, at: Sequence[float], factor: float, warmup_updates: int = 0) -> Curve:
    """``peak``, multiplied by ``factor`` at each fraction of the training in ``at``.

    The first ``warmup_updates`` climb to it in a line, at most a tenth of the training.

    >>> rate = steps(0.1, at=(0.3, 0.6, 0.8), factor=0.2)
    >>> round(rate(Clock(step=70, steps=100, epoch=0, epochs=1)), 6)
    0.004
    """

    def value(clock: Clock) -> float:
        rate = peak * factor ** sum(clock.progress >= share for share in at)
        return rate * min(1.0, (clock.step + 1) / max(1.0, min(warmup_updates, clock.steps / 10)))

    when = ", ".join(f"{share:.0%}" for share in at)
    before = f"warm-up {warmup_updates} updates (at most a tenth) to " if warmup_updates else ""
    return Curve(value, peak, lambda scale: f"{before}{scale * peak:g}, x {factor:g} at {when}")


def staircase(peak: float, *, every: int, factor: float) -> Curve:
    """``peak``, multiplied by ``factor`` after every ``every`` updates, however long the training.

    >>> rate = staircase(1e-4, every=10_000, factor=0.9)
    >>> round(rate(Clock(step=25_000, steps=50_000, epoch=0, epochs=1)), 8)
    8.1e-05
    """
    if every < 1:
        raise ValueError(f"a rate can fall every 1 or more updates, not every {every}")
    return Curve(
        lambda clock: peak * factor ** (clock.step // every),
        peak,
        lambda scale: f"{scale * peak:g}, x {factor:g} every {every} updates",
    )


def exponential(peak: float, *, every: float, factor: float, warmup_epochs: float = 0.0) -> Curve:
    """``peak``, multiplied by ``factor`` after every ``every`` epochs, which need not be whole ones.

    The first ``warmup_epochs`` climb to it in a line from 0, at most a tenth of the training; the falls are counted
    from the beginning too (Noisy Student, EfficientNet).

    >>> rate = exponential(0.1, every=2.4, factor=0.97, warmup_epochs=5)
    >>> [round(rate(Clock(step=step, steps=3500, epoch=step // 10, epochs=350)), 6) for step in (25, 60, 75)]
    [0.05, 0.09409, 0.091267]
    """
    if every <= 0:
        raise ValueError(f"a rate can fall every so many epochs, more than 0, not every {every:g}")

    def value(clock: Clock) -> float:
        warmup = min(warmup_epochs * clock.steps_per_epoch, clock.steps / 10)
        if clock.step < warmup:
            return peak * clock.step / warmup
        return peak * factor ** math.floor(clock.step / (every * clock.steps_per_epoch))

    before = f"warm-up {warmup_epochs:g} epochs (at most a tenth) to " if warmup_epochs else ""
    return Curve(value, peak, lambda scale: f"{before}{scale * peak:g}, x {factor:g} every {every:.3g} epochs")
