"""The analysis as one page: a dot for each head, a line for their mean, a square for how alike layers are."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from selfsight.engine.checkpoint import write_atomically

if TYPE_CHECKING:
    from selfsight.analysis.analyse import Analysis

_MEASURES = (
    ("distance", "Average attention distance", "pixels", "How far patches look, on average."),
    ("entropy", "Attention entropy", "nats", "How evenly: the log of the number of patches is all alike."),
    ("divergence", "Divergence between heads", "nats", "How differently heads look; 0 where all look alike."),
)


def write_page(found: "Analysis", path: Path) -> None:
    """Writes the page, which needs no network, in place of an earlier one."""
    names = " and ".join(s.name for s in found.subjects)
    parts: list[str] = []
    if any(s.tally.counts for s in found.subjects):
        for key, caption, unit, note in _MEASURES:
            parts += [section(caption, note), embedded(_curves(found, key, unit), first=len(parts) == 0)]
    note = "Centred kernel alignment of the layers' pooled features: 1 is the same but for rotation and scale."
    parts += [section("Likeness of layers", note), embedded(_square(found), first=not parts)]
    captions = {
        "attention": "Where the class token looks in the last layer: the image, then each head.",
        "patches": "The image beside its patches' three principal components as red, green and blue.",
    }
    for s in found.subjects:
        for what, picture in s.pictures.items():
            data = base64.b64encode(picture.read_bytes()).decode()
            parts += [section(s.name, captions[what]), f'<img alt="" src="data:image/png;base64,{data}">']
    write_atomically(path, whole_page(f"{names} on {found.images:,} images of {found.data}", parts))


def whole_page(title: str, parts: Iterable[str]) -> bytes:
    """A page that needs no network, of parts that are HTML already."""
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
    )
    title = html.escape(title)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"</head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )
    return page.encode(errors="backslashreplace")


def section(title: str, note: str) -> str:
    """A heading and a line below it."""
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(note)}</p>"


def embedded(figure: go.Figure, *, first: bool) -> str:
    """A figure; the ``first`` of a page brings plotly with it."""
    return figure.to_html(full_html=False, include_plotlyjs=first)


def _curves(found: "Analysis", key: str, unit: str) -> go.Figure:
    titles = [html.escape(s.name) for s in found.subjects]
    figure = make_subplots(cols=len(titles), subplot_titles=titles, shared_yaxes=True)
    for column, s in enumerate(found.subjects, start=1):
        layers = [getattr(heads, key).tolist() for heads in s.heads().values()]
        x = [i for i, values in enumerate(layers, start=1) for _ in values]
        y = [value for values in layers for value in values]
        means = [sum(values) / len(values) for values in layers]
        figure.add_scatter(x=x, y=y, mode="markers", name="heads", marker_color="#9ab", row=1, col=column)
        figure.add_scatter(x=list(range(1, len(means) + 1)), y=means, name="mean", line_color="#c33", row=1, col=column)
        figure.update_xaxes(title="layer", row=1, col=column)
    figure.update_yaxes(title=unit, col=1, row=1, rangemode="tozero")
    return figure.update_layout(height=380, showlegend=False, template="simple_white")


def _square(found: "Analysis") -> go.Figure:
    names = [html.escape(f"{who} {layer}" if len(found.subjects) > 1 else layer) for who, layer in found.layers]
    heat = go.Heatmap(z=found.alike.tolist(), x=names, y=names, zmin=0, zmax=1, colorscale="Viridis")
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
    figure.update_xaxes(constrain="domain")
    return figure.update_layout(height=640, template="simple_white")
