"""One self-contained HTML page a run: it opens from the disk and asks no network for anything."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from selfsight.engine.checkpoint import write_atomically
from selfsight.report.charts import Chart
from selfsight.report.content import ReportContent
from selfsight.report.gather import gather_content
from selfsight.report.sections import Section, all_sections, summary

_HERE = Path(__file__).parent


def write_report(run: Path) -> Path:
    """Writes ``report.html`` into the run's folder, in place of an earlier one, and returns its path."""
    page = build_page(gather_content(run))
    target = run / "report.html"
    write_atomically(target, page.encode(errors="backslashreplace"))  # a name may be no text
    return target


def build_page(content: ReportContent) -> str:
    """The page as text. Everything in ``content`` is escaped; only this package's own files are not.

    >>> page = build_page(ReportContent(name="runs/x", settings={"method": "<b>simclr</b>"}))
    >>> "&lt;b&gt;simclr" in page, "<b>simclr" in page
    (True, False)
    """
    sections = all_sections(content)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.1%}"
    return environment.get_template("report.html").render(
        content=content,
        summary=summary(content),
        sections=sections,
        figures=script_json({chart.id: chart.figure for chart in _figures(sections)}),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _visible(value: Any) -> Any:
    """Text in which characters that steer a terminal, or turn the writing round, are spelt out."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _CONTROL.sub(lambda one: one[0].encode("unicode_escape").decode(), value)


def _figures(sections: Iterable[Section]) -> Iterable[Chart]:
    for section in sections:
        for part in section.parts:
            if part.kind == "charts":
                yield from part.body
            elif part.kind == "map":
                yield part.body.chart


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character of it can end the element; no NaN.

    >>> str(script_json({"x": "</script>", "y": float("nan")}))
    '{"x": "\\\\u003c/script\\\\u003e", "y": null}'
    """
    text = json.dumps(_finite(value), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
