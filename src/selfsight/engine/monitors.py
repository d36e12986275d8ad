"""Label-free monitors: a collapse is named while it happens, with its cause and what to change.

They look at what a method's ``watch`` hands over and never change a step. What they keep between steps is saved with
the checkpoint, so that a resumed run writes the same numbers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.evaluation.quality import alignment, effective_rank, feature_std, uniformity
from selfsight.method import Watched


@dataclass(frozen=True)
class Alarm:
    """Something that a run should not go on with unseen."""

    name: str
    value: float
    cause: str
    advice: str


ADVICE: dict[str, tuple[str, str]] = {
    "feature_collapse": (
        "all images get nearly the same projection",
        "lower --lr, warm up for longer, raise --batch-size; for BYOL-like methods check the momentum",
    ),
    "projection_collapse": (
        "the projections of all images lie in a few directions",
        "see that the method's own support is there (predictor, stopped gradient, centring, balance), or lower --lr",
    ),
    "dimensional_collapse": (
        "features use only a few of their dimensions",
        "lower --lr, weaken the augmentation, or train for longer: early in training this can still pass",
    ),
    "teacher_uniform": (
        "the teacher says the same about every image: its output is uniform",
        "lower the teacher's temperature or the centring's momentum",
    ),
    "teacher_peaked": (
        "the teacher puts every image into one class",
        "raise the teacher's temperature or strengthen the centring",
    ),
    "dead_prototypes": (
        "most prototypes attract no image",
        "use fewer prototypes, a larger batch or queue, or freeze the prototypes for longer",
    ),
    "not_finite": (
        "a loss or a gradient is not a number: that update was left out",
        "what the alarm itself says, which names the module in which it arose",
    ),
    "data_wait": (
        "training waits for images most of the time",
        "raise --workers, or store the images smaller",
    ),
}


COLLAPSED, SPREAD = math.sqrt(1 - 0.95), 0.8
"""Shares of the even spread below which projections have collapsed, and above which something holds them apart."""
COPIES = 0.05
"""The share of the directions that projections could have, below which they are copies of one another."""


def alarm(name: str, value: float) -> Alarm:
    return Alarm(name, value, *ADVICE[name])


class Monitors:
    """Rolling buffers and the readings made of them.

    Thresholds are ours. Directions spread evenly over a ``d``-sphere have a standard deviation of ``1 / sqrt(d)`` in
    each coordinate; where two images' mean cosine is above 0.95, it is below 0.22 of that, and they have collapsed.
    Where batch norm keeps up the deviation, coordinates become copies of a few instead: projections that are spread
    and yet have an effective rank below 5 % of what the batch and their width allow have collapsed too. Features whose
    effective rank is below 2 % of what the buffer allows are named, as is a teacher within 0.5 % of the uniform
    entropy, or one whose answers are certain and all the same. Readings in the first twentieth of a training raise no
    alarm.
    """

    def __init__(self, rows: int = 4096) -> None:
        self.rows = rows
        self.features: Tensor | None = None
        self.assigned: Tensor | None = None
        self.prototypes = 1
        self.latest: dict[str, Tensor] = {}

    def see(self, watch: Mapping[Watched, Tensor]) -> None:
        """Takes what one objective hands over."""
        self.latest.update({name: x.detach() for name, x in watch.items() if name in ("projection", "teacher")})
        if "feature" in watch:
            self.features = self._push(self.features, watch["feature"].detach().float())
        if "assignment" in watch:
            self.assigned = self._push(self.assigned, watch["assignment"].detach().argmax(dim=-1))
            self.prototypes = watch["assignment"].shape[-1]

    def _push(self, kept: Tensor | None, new: Tensor) -> Tensor:
        whole = new if kept is None else torch.cat([kept, new])
        return whole[-self.rows :]

    @torch.no_grad()
    def read(self) -> dict[str, float]:
        """The readings of now; a name is absent where nothing was handed over for it."""
        out: dict[str, float] = {}
        if self.features is not None and len(self.features) > 1:
            out["effective_rank"] = float(effective_rank(self.features))
        if "projection" in self.latest:
            z = self.latest["projection"].float()
            out["feature_std"] = float(feature_std(z))
            out["uniformity"] = float(uniformity(z[:1024]))
            out["projection_rank"] = float(effective_rank(z[:1024]))
            half = len(z) // 2
            if half and len(z) % 2 == 0:
                out["alignment"] = float(alignment(z[:half], z[half:]))
        if "teacher" in self.latest:
            p = self.latest["teacher"].float()
            out["teacher_entropy"] = float(_entropy(p).mean()) / math.log(p.shape[-1])
        if self.assigned is not None:
            used = self.assigned.unique().numel()
            out["dead_prototypes"] = 1 - used / min(self.prototypes, len(self.assigned))
        return out

    def judge(self, readings: Mapping[str, float], progress: float) -> list[Alarm]:
        """The alarms that the readings give."""
        if progress < 0.05:
            return []
        found: list[Alarm] = []
        if "feature_std" in readings:
            n, width = self.latest["projection"].shape
            spread, rank = readings["feature_std"] * math.sqrt(width), readings["projection_rank"]
            if spread < COLLAPSED:
                found.append(alarm("feature_collapse", readings["feature_std"]))
            elif spread > SPREAD and rank < COPIES * min(n, width, 1024):
                found.append(alarm("projection_collapse", rank))
        if self.features is not None and "effective_rank" in readings:
            limit = max(2.0, 0.02 * min(self.features.shape))
            if readings["effective_rank"] < limit:
                found.append(alarm("dimensional_collapse", readings["effective_rank"]))
        if "teacher_entropy" in readings:
            p = self.latest["teacher"].float()
            together = float(_entropy(p.mean(dim=0))) / math.log(p.shape[-1])
            if readings["teacher_entropy"] > 0.995:
                found.append(alarm("teacher_uniform", readings["teacher_entropy"]))
            elif together < 0.01:
                found.append(alarm("teacher_peaked", together))
        if readings.get("dead_prototypes", 0.0) > 0.9:
            found.append(alarm("dead_prototypes", readings["dead_prototypes"]))
        return found

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        kept = {"features": self.features, "assigned": self.assigned, "prototypes": torch.tensor(self.prototypes)}
        return {name: x for name, x in kept.items() if x is not None}

    def restore(self, state: Mapping[str, Tensor], place: Callable[[Tensor], Tensor]) -> None:
        """Takes a checkpoint's state; ``place`` moves a tensor to the run's device."""
        self.features = place(state["features"]) if "features" in state else None
        self.assigned = place(state["assigned"]) if "assigned" in state else None
        self.prototypes = int(state["prototypes"])


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-12).log()).sum(dim=-1)
