"""The pictures of ``selfsight bench scaling``: loss and accuracy over the images and over the encoder's size."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsight.analysis.page import embedded, section, whole_page
from selfsight.engine.checkpoint import write_atomically
from selfsight.report.panels import Line, Panel, figure, picture

_NOTES = {
    "loss": "Of images that were learnt from (solid) and of held-out ones (dashed), by the weights of the end. Where "
    "they part, the encoder learns its images by heart.",
    "accuracy": "On the test images, with all training labels. Dotted: the same encoder without pretraining.",
    "both": "Each point is a training. The paper finds that the held-out loss tells the accuracy beforehand.",
}


def write_pictures(results: Mapping[str, Any], out: Path) -> None:
    """``scaling.png`` and ``scaling.html``, which needs no network, in place of earlier ones."""
    drawn = list(panels(results))
    packed = io.BytesIO()
    picture([panel for _, panel in drawn], _legend(results)).save(packed, "PNG")
    write_atomically(out / "scaling.png", packed.getvalue())
    rules, data = results["rules"], results["data"]
    title = f"{rules['method']} on {data['name']}: {rules['updates']} updates of {rules['batch_size']} images"
    parts: list[str] = []
    for i, (kind, panel) in enumerate(drawn):
        parts += [section(panel.title, _NOTES[kind]), embedded(figure(panel), first=i == 0)]
    write_atomically(out / "scaling.html", whole_page(title, parts))


def panels(results: Mapping[str, Any]) -> Iterator[tuple[str, Panel]]:
    """What is drawn, with its kind: loss, accuracy and both."""
    protocol = results["rules"]["protocols"][0]
    points = [point for point in results["points"].values() if "failed" not in point]
    sizes, fractions = _order(results, points)
    weights = {size: results["baselines"][size]["parameters"] for size in sizes}
    by_size = {size: sorted((p for p in points if p["size"] == size), key=lambda p: p["images"]) for size in sizes}
    by_part = {
        fraction: sorted((p for p in points if p["fraction"] == fraction), key=lambda p: weights[p["size"]])
        for fraction in fractions
    }
    random = {size: results["baselines"][size]["accuracy"][protocol] for size in sizes}

    def lines(groups: Mapping[Any, Sequence[Any]], at: Any, value: Any, dash: Any = "solid") -> list[Line]:
        what = ", held out" if dash == "dashed" else ""
        rows = enumerate(groups.items(), start=len(sizes) if groups is by_part else 0)  # no colour means two things
        return [
            Line(
                name=f"{_named(group)}{what}", x=[at(p) for p in some], y=[value(p) for p in some], colour=i, dash=dash
            )
            for i, (group, some) in rows
        ]

    def images(p: Mapping[str, Any]) -> float:
        return p["images"]

    def heavy(p: Mapping[str, Any]) -> float:
        return weights[p["size"]]

    def right(p: Mapping[str, Any]) -> float:
        return p["accuracy"][protocol]

    def losses(groups: Mapping[Any, Sequence[Any]], at: Any) -> list[Line]:
        return [
            *lines(groups, at, lambda p: p["held_out_loss"], "dashed"),
            *lines(groups, at, lambda p: p["loss"]),
        ]

    over_images: dict[str, Any] = {"x": "images to learn from", "shown_x": lambda v: f"{v:,.0f}", "log_x": True}
    over_size: dict[str, Any] = {"x": "weights of the encoder", "shown_x": _weights, "log_x": True}
    loss: dict[str, Any] = {"y": "loss", "shown_y": lambda v: f"{v:.3g}"}
    accuracy: dict[str, Any] = {"y": f"{protocol}, %", "shown_y": lambda v: f"{100 * v:.3g}"}
    every = [p["images"] for p in points]
    levels = [
        Line(name=f"{size} at random", x=[min(every), max(every)], y=[random[size]] * 2, colour=i, dash="dotted")
        for i, size in enumerate(sizes)
    ]
    at_random = Line(name="at random", x=list(weights.values()), y=list(random.values()), dash="dotted")
    yield "loss", Panel(title="Pretraining loss over data", lines=losses(by_size, images), **over_images, **loss)
    yield "loss", Panel(title="Pretraining loss over size", lines=losses(by_part, heavy), **over_size, **loss)
    both = lines(by_size, lambda p: p["held_out_loss"], right)
    scattered = [Line(name=line.name, x=line.x, y=line.y, colour=line.colour, joined=False) for line in both]
    shown: dict[str, Any] = {"x": "held-out loss", "shown_x": loss["shown_y"]}
    yield "both", Panel(title="Accuracy over held-out loss", lines=scattered, **shown, **accuracy)
    right_by_size = [*levels, *lines(by_size, images, right)]
    yield "accuracy", Panel(title="Accuracy over data", lines=right_by_size, **over_images, **accuracy)
    right_by_part = [at_random, *lines(by_part, heavy, right)] if points else []
    yield "accuracy", Panel(title="Accuracy over size", lines=right_by_part, **over_size, **accuracy)


def _order(results: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[float]]:
    """Sizes from the smallest on, and fractions."""
    sizes = sorted({p["size"] for p in points}, key=lambda size: results["baselines"][size]["parameters"])
    return sizes, sorted({p["fraction"] for p in points})


def _legend(results: Mapping[str, Any]) -> list[tuple[str, Line | None]]:
    points = [point for point in results["points"].values() if "failed" not in point]
    sizes, fractions = _order(results, points)

    def line(colour: int | None, dash: Any = "solid") -> Line:
        return Line(name="", x=(), y=(), colour=colour, dash=dash)

    return [
        ("Encoder, in the left column and on the right", None),
        *((f"{size}, {_weights(results['baselines'][size]['parameters'])}", line(i)) for i, size in enumerate(sizes)),
        ("Share of the images, in the middle column", None),
        *((_named(fraction), line(i)) for i, fraction in enumerate(fractions, start=len(sizes))),
        ("Pretraining loss", None),
        ("of images that were learnt from", line(None)),
        ("of held-out images", line(None, "dashed")),
        ("Accuracy", None),
        ("without pretraining", line(None, "dotted")),
    ]


def _named(group: str | float) -> str:
    return group if isinstance(group, str) else f"{100 * group:g} %"


def _weights(count: float) -> str:
    return f"{count / 1e6:.2g} M"
