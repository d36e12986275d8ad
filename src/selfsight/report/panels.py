"""Curves in panels, drawn once as a picture (PNG, by Pillow alone) and once for a page (plotly)."""

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import plotly.graph_objects as go
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#3567b0", "#d1663a", "#3d8f5b", "#8a5aa8", "#b0903a", "#4aa3b5", "#b0476f")
GREY, INK, RULE = "#8a8f98", "#22262b", "#e4e6ea"
WIDTH, HEIGHT, LARGE = 400, 290, 2
"""A panel in points, and pixels to a point; it is drawn twice as fine and reduced."""
_FINE = 2 * LARGE
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 46

Dash = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points in a row; ``colour`` counts from 0, and None is grey. A dotted line has no marks."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None
    dash: Dash = "solid"
    joined: bool = True

    @property
    def ink(self) -> str:
        return GREY if self.colour is None else COLOURS[self.colour % len(COLOURS)]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure; ``log_x`` for what grows by factors, whose ticks are then at the points."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    shown_x: Callable[[float], str]
    shown_y: Callable[[float], str]
    log_x: bool = False


def picture(panels: Sequence[Panel], legend: Sequence[tuple[str, Line | None]], *, across: int = 3) -> Image.Image:
    """The panels in rows, and in the next place the legend: words, and the line that they are of if any."""
    rows = -(-(len(panels) + 1) // across)
    sheet = Image.new("RGB", (across * WIDTH * _FINE, rows * HEIGHT * _FINE), "white")
    draw = ImageDraw.Draw(sheet)
    for i, panel in enumerate(panels):
        _draw(draw, panel, i % across * WIDTH, i // across * HEIGHT)
    left, top = len(panels) % across * WIDTH + 30, len(panels) // across * HEIGHT + _TOP
    for i, (words, line) in enumerate(legend):
        y = top + 18 * i
        if line is not None:
            _stroke(draw, [(left, y), (left + 26, y)], line)
        _write(draw, (left + (36 if line else 0), y), words, "lm", bold=line is None)
    return sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)


def _draw(draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    x0, x1, y0, y1 = left + _LEFT, left + WIDTH - _RIGHT, top + HEIGHT - _BOTTOM, top + _TOP
    xs = sorted({x for line in panel.lines for x in line.x})
    ys = [y for line in panel.lines for y in line.y]
    _write(draw, (x0, top + 14), panel.title, "lm", bold=True)
    _write(draw, ((x0 + x1) / 2, top + HEIGHT - 12), panel.x, "mm")
    if not xs:
        _write(draw, ((x0 + x1) / 2, (y0 + y1) / 2), "nothing measured yet", "mm", ink=GREY)
        return
    across = math.log if panel.log_x else float
    at_x = _scale([across(x) for x in xs], x0, x1)
    at_y = _scale(ys, y0, y1)
    low, high = _room(ys)
    for y in ticks(low, high):
        draw.line([_at(x0, at_y(y)), _at(x1, at_y(y))], fill=RULE, width=_FINE)
        _write(draw, (x0 - 6, at_y(y)), panel.shown_y(y), "rm", small=True)
    marks, last = xs if panel.log_x else list(ticks(*_room(xs))), -math.inf
    for x in marks:
        place = at_x(across(x))
        draw.line([_at(place, y0), _at(place, y0 + 4)], fill=GREY, width=_FINE)
        if place - last >= 44:
            _write(draw, (place, y0 + 13), panel.shown_x(x), "mm", small=True)
            last = place
    draw.line([_at(x0, y1), _at(x0, y0), _at(x1, y0)], fill=GREY, width=_FINE)
    _write(draw, (x1, top + 14), panel.y, "rm", small=True, ink=GREY)
    for line in panel.lines:
        places = [(at_x(across(x)), at_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        if line.joined:
            _stroke(draw, places, line)
        for x, y in places if line.dash != "dotted" else ():
            draw.ellipse([*_at(x - 3.2, y - 3.2), *_at(x + 3.2, y + 3.2)], fill=line.ink)


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * 0.08
    return low - room, high + room


def _scale(values: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    low, high = _room(values)
    return lambda value: start + (stop - start) * (value - low) / (high - low)


def ticks(low: float, high: float, most: int = 6) -> Iterator[float]:
    """Round numbers between the two, 1, 2 or 5 times a power of ten apart, at most ``most``.

    >>> [round(tick, 3) for tick in ticks(0.31, 0.58)]
    [0.35, 0.4, 0.45, 0.5, 0.55]
    """
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(by for by in (1, 2, 5, 10) if (high - low) / (by * step) <= most)
    yield from (step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def _at(x: float, y: float) -> tuple[float, float]:
    return x * _FINE, y * _FINE


def _stroke(draw: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]], line: Line) -> None:
    """A line in its pattern, whose phase goes on round corners."""
    on, off = {"solid": (math.inf, 0.0), "dashed": (7.0, 4.0), "dotted": (1.8, 3.2)}[line.dash]
    width, done = round((1.3 if line.dash == "dotted" else 2.0) * _FINE), 0.0
    for (xa, ya), (xb, yb) in pairwise(places):
        length, here = math.hypot(xb - xa, yb - ya), 0.0
        while here < length:
            inside = done % (on + off) if off else 0.0
            drawn = inside < on
            far = min(here + ((on if drawn else on + off) - inside), length)
            if drawn:
                ends = [(xa + (xb - xa) * t / length, ya + (yb - ya) * t / length) for t in (here, far)]
                draw.line([_at(*end) for end in ends], fill=line.ink, width=width)
            done, here = done + max(far - here, 1e-6), max(far, here + 1e-6)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    words: str,
    anchor: str,
    *,
    bold: bool = False,
    small: bool = False,
    ink: str = INK,
) -> None:
    font = ImageFont.load_default((10.5 if small else 12) * _FINE)
    draw.text(_at(*at), words, fill=ink, font=font, anchor=anchor, stroke_width=_FINE // 4 if bold else 0)


def figure(panel: Panel) -> go.Figure:
    """The panel for a page, with a name for each line."""
    made = go.Figure()
    for line in panel.lines:
        made.add_scatter(
            x=list(line.x),
            y=list(line.y),
            name=html.escape(line.name),
            mode="markers" if not line.joined else "lines" if line.dash == "dotted" else "lines+markers",
            line={"color": line.ink, "dash": {"dashed": "dash", "dotted": "dot"}.get(line.dash, "solid")},
            marker={"color": line.ink},
        )
    places = sorted({x for line in panel.lines for x in line.x})
    named = {"tickvals": places, "ticktext": [panel.shown_x(x) for x in places]} if panel.log_x else {}
    made.update_xaxes(title=html.escape(panel.x), type="log" if panel.log_x else "linear", **named)
    made.update_yaxes(title=html.escape(panel.y))
    return made.update_layout(height=380, template="simple_white")
