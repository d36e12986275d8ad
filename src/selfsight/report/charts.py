"""Figures as plain plotly data: no colours, which belong to the page's theme and follow it.

A trace names its role (``accent``, ``faint``, ``second``, ``class:N``) in ``meta``; the page's script gives it a colour
of the theme in use.
"""

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfsight.report.content import Column, EmbeddingMap

MOST_POINTS = 1500
"""More points than this are averaged in equal runs: a curve is never wider than a screen."""


@dataclass(frozen=True)
class Chart:
    """A figure with what stands round it."""

    id: str
    title: str
    note: str
    value: str
    figure: Mapping[str, Any]


def number(value: float | None) -> str:
    """A number for the eye: four digits that matter.

    >>> number(0.00031), number(12345.6), number(None)
    ('0.00031', '12,346', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def last(column: Column) -> float | None:
    """The last value that was measured."""
    return next((value for value in reversed(column) if value is not None), None)


def measured(x: Column, y: Column) -> tuple[list[float], list[float]]:
    """The points where both are finite."""
    pairs = [
        (a, b)
        for a, b in zip(x, y, strict=True)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def thin(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """Means of equal runs, at most ``most`` of them.

    >>> thin([0, 1, 2, 3], [1, 3, 5, 7], most=2)
    ([0.5, 2.5], [2.0, 6.0])
    """
    if len(x) <= most:
        return list(x), list(y)
    run = math.ceil(len(x) / most)
    starts = range(0, len(x), run)
    return (
        [sum(x[i : i + run]) / len(x[i : i + run]) for i in starts],
        [sum(y[i : i + run]) / len(y[i : i + run]) for i in starts],
    )


def smooth(y: Sequence[float], share: float = 0.02) -> list[float]:
    """A running mean over ``share`` of the points, one-sided at the ends."""
    reach = max(1, round(len(y) * share / 2))
    sums = [0.0]
    for value in y:
        sums.append(sums[-1] + value)
    out: list[float] = []
    for i in range(len(y)):
        first, end = max(0, i - reach), min(len(y), i + reach + 1)
        out.append((sums[end] - sums[first]) / (end - first))
    return out


def curve(
    id: str,
    title: str,
    note: str,
    steps: Column,
    values: Column,
    *,
    lines: Mapping[str, float] | None = None,
    percent: bool = False,
) -> Chart | None:
    """One column over the updates; ``lines`` are levels to compare with. None where nothing was measured."""
    x, y = thin(*measured(steps, values))
    if not y:
        return None
    noisy = len(y) > 100
    hover = "update %{x:.0f}: %{y:.1%}<extra></extra>" if percent else "update %{x:.0f}: %{y:.4g}<extra></extra>"
    raw = {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "lines" if len(y) > 40 else "lines+markers",
        "meta": {"role": "faint" if noisy else "accent"},
        "line": {"width": 1 if noisy else 2},
        "marker": {"size": 5},
        "hovertemplate": hover,
    }
    data: list[dict[str, Any]] = [raw]
    if noisy:
        steady = {"mode": "lines", "meta": {"role": "accent"}, "line": {"width": 2}, "hoverinfo": "skip"}
        data.append({"type": "scatter", "x": x, "y": smooth(y), **steady})
    layout: dict[str, Any] = {"yaxis": {"tickformat": ".1~%"} if percent else {}, "shapes": [], "annotations": []}
    for name, level in (lines or {}).items():
        layout["shapes"].append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level})
        layout["annotations"].append(
            {"xref": "paper", "x": 1, "y": level, "text": html.escape(name), "xanchor": "right", "yanchor": "bottom"}
        )
    if lines:  # a level outside the curve's range must still be seen
        low, high = min(*y, *lines.values()), max(*y, *lines.values())
        room = (high - low or abs(high) or 1) * 0.08
        layout["yaxis"]["range"] = [low - room, high + 2 * room]
    final = last(values)
    shown = f"{final:.1%}" if percent and final is not None else number(final)
    return Chart(id, title, note, shown, {"data": data, "layout": layout})


MOST_CLASSES = 10
"""Colours that the eye can tell apart; further classes share grey."""


def embedding(found: EmbeddingMap) -> Chart:
    """The map's points, coloured by the most frequent labels; ``customdata`` is each point's place in the sprite."""
    order = [name for name, _ in Counter(found.labels or ()).most_common(MOST_CLASSES)]
    data: list[dict[str, Any]] = []
    for role, name in [*((f"class:{i}", name) for i, name in enumerate(order)), ("rest", None)]:
        if found.labels is None:
            chosen = list(range(len(found.x)))
        elif name is None:
            chosen = [i for i, label in enumerate(found.labels) if label not in order]
        else:
            chosen = [i for i, label in enumerate(found.labels) if label == name]
        if not chosen:
            continue
        rest = f"{len(set(found.labels or ())) - len(order)} more classes" if found.labels else "images"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(rest if name is None else name or "no label"),
                "x": [round(float(found.x[i]), 3) for i in chosen],
                "y": [round(float(found.y[i]), 3) for i in chosen],
                "customdata": chosen,
                "meta": {"role": role if found.labels else "accent"},
                "marker": {"size": 6, "opacity": 0.8},
                "hoverinfo": "none",
            }
        )
    layout = {
        "showlegend": found.labels is not None,
        "xaxis": {"visible": False},
        "yaxis": {"visible": False, "scaleanchor": "x"},
    }
    note = f"{len(found.x):,} images; {found.projection}. Point at one to see it."
    return Chart("map", "Map of the embeddings", note, "", {"data": data, "layout": layout})
