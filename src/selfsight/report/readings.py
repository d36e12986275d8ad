"""What each measured column means, and what its values say, in plain words.

The limits are those at which the engine raises its alarms; a reading never says more than the numbers do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selfsight.report.charts import number

Reader = Callable[[list[float], int | None], str]
"""Values in the order of the updates and the projection's width, where known; a sentence, empty if none is due."""


@dataclass(frozen=True)
class Reading:
    """How one column is shown."""

    title: str
    note: str
    read: Reader


def _course(values: list[float]) -> str:
    """From where to where."""
    if len(values) < 2:
        return f"{number(values[-1])}, read once."
    first, last = values[0], values[-1]
    change = last - first
    if abs(change) <= 0.02 * max(abs(first), abs(last)):
        return f"Held at {number(last)}."
    return f"{'Rose' if change > 0 else 'Fell'} from {number(first)} to {number(last)}."


def _spread(values: list[float], width: int | None) -> str:
    even = f"; evenly spread over {width} dimensions it would be {number(width**-0.5)}" if width else ""
    if values[-1] < 0.22 * (width or 2048) ** -0.5:
        return f"{number(values[-1])}: all images get nearly the same projection, the run has collapsed{even}."
    return _course(values)[:-1] + f"{even}."


def _rank(values: list[float], width: int | None) -> str:
    if values[-1] < 2:
        return f"{number(values[-1])}: the features lie on a line, the run has collapsed."
    peak = max(values)
    if values[-1] < 0.5 * peak and peak > 4:
        return f"{_course(values)} It is below half of its peak of {number(peak)}: the features lost directions."
    return _course(values)


def _alignment(values: list[float], width: int | None) -> str:
    near = "; at 1 or above two views are hardly more alike than two images" if values[-1] >= 1 else ""
    return _course(values)[:-1] + f"{near}."


def _uniformity(values: list[float], width: int | None) -> str:
    if values[-1] > -0.05:
        return f"{number(values[-1])}: nearly all images share one point, the run has collapsed."
    return _course(values)


def _entropy(values: list[float], width: int | None) -> str:
    if values[-1] > 0.995:
        return f"{number(values[-1])}: the teacher says the same, uniform thing about every image."
    if values[-1] < 0.01:
        return f"{number(values[-1])}: the teacher is certain of each image; healthy only if its answers differ."
    return _course(values)


def _dead(values: list[float], width: int | None) -> str:
    share = f"{values[-1]:.0%} of the prototypes drew no image of the last ones seen"
    return f"{share}: most of them are dead." if values[-1] > 0.9 else f"{share}."


MONITORS: Mapping[str, Reading] = {
    "feature_std": Reading(
        "Spread",
        "Standard deviation of unit-length projections, averaged over dimensions; 0 when all images share one.",
        _spread,
    ),
    "effective_rank": Reading(
        "Effective rank",
        "How many directions the encoder's features use (RankMe); 1 is a line. Grows with the samples it is read on.",
        _rank,
    ),
    "projection_rank": Reading(
        "Projections' rank",
        "How many directions the projections of one batch use; few where they become copies of one another.",
        lambda values, width: _course(values),
    ),
    "alignment": Reading(
        "Alignment",
        "Mean squared distance of an image's two views on the unit sphere: 0 is equal, 2 unrelated.",
        _alignment,
    ),
    "uniformity": Reading(
        "Uniformity",
        "How evenly images fill the unit sphere: 0 is one point, near −4 evenly spread.",
        _uniformity,
    ),
    "teacher_entropy": Reading(
        "Teacher's entropy",
        "How unsure the teacher is about one image: 0 is certain, 1 uniform over its outputs.",
        _entropy,
    ),
    "dead_prototypes": Reading("Dead prototypes", "Share of the prototypes that no recent image chose.", _dead),
}


CURVES: Mapping[str, tuple[str, str]] = {
    "loss": ("Loss", "Mean over an update's images. Losses of different methods or batch sizes do not compare."),
    "knn": ("kNN accuracy while training", "Weighted nearest neighbours on frozen features: the online probe."),
    "lr": ("Learning rate", "Of the main optimiser."),
    "grad_norm": ("Gradient norm", "Before clipping."),
    "weight_decay": ("Weight decay", "Of the main optimiser."),
}
"""Title and note of the columns that every run has."""
