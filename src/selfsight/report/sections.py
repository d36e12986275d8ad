"""The page's sections, as data: what each shows, and one line on what would fill it where it is empty."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from selfsight.recipes import catalogue
from selfsight.report.charts import Chart, curve, embedding, last, number
from selfsight.report.content import Column, Neighbours, Picture, ReportContent, Sprite
from selfsight.report.readings import CURVES, MONITORS

Kind = Literal["charts", "table", "facts", "picture", "code", "note", "map", "neighbours", "shares", "alarms", "scores"]


@dataclass(frozen=True)
class Part:
    """One thing in a section; the template knows how to draw each kind."""

    kind: Kind
    body: Any
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; ``empty`` stands in its place where there is nothing to show."""

    id: str
    title: str
    parts: Sequence[Part]
    empty: str = ""


@dataclass(frozen=True)
class Rows:
    """A table."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class PointMap:
    """The map's figure and the thumbnails of its points."""

    chart: Chart
    sprite: Sprite
    captions: Sequence[str]


@dataclass(frozen=True)
class Share:
    """A named part of a whole."""

    name: str
    share: float
    role: str


def _steps(table: Mapping[str, Column]) -> Column:
    return table.get("step", [])


def _charts(found: Sequence[Chart | None]) -> list[Part]:
    kept = [chart for chart in found if chart is not None]
    return [Part("charts", kept)] if kept else []


def _varies(column: Column) -> bool:
    values = {value for value in column if value is not None}
    return len(values) > 1


def baselines(content: ReportContent) -> dict[str, float]:
    """The kNN accuracies that the online curve is compared with, once an evaluation has measured them."""
    found = content.evaluations.get("knn", {})
    return {row.name: row.top1 for row in score_rows(found) if row.name != "trained" and row.top1 is not None}


def curves(content: ReportContent) -> Section:
    """Loss, probe, rates, and whatever else the method logs."""
    table, steps = content.metrics, _steps(content.metrics)
    charts: list[Chart | None] = []
    for name, (title, note) in CURVES.items():
        if name in table and (name != "weight_decay" or _varies(table[name])):
            probe = name == "knn"
            lines = baselines(content) if probe else None
            charts.append(curve(name, title, note, steps, table[name], lines=lines, percent=probe))
    known = {"step", "epoch", *CURVES, *MONITORS}
    for i, name in enumerate(sorted(set(table) - known)):
        charts.append(curve(f"own-{i}", name, "Logged by the method.", steps, table[name]))
    return Section("training", "Training", _charts(charts), "No update was logged: metrics.csv has no row yet.")


def monitors(content: ReportContent) -> Section:
    """What the monitors measured, what that means, and the alarms they raised."""
    parts: list[Part] = []
    if content.alarms:
        parts.append(Part("alarms", content.alarms))
    charts: list[Chart] = []
    for name, reading in MONITORS.items():
        values = content.metrics.get(name, [])
        chart = curve(name, reading.title, reading.note, _steps(content.metrics), values) if values else None
        if chart is not None:
            said = reading.read([value for value in values if value is not None], None)
            charts.append(Chart(chart.id, chart.title, f"{said} {reading.note}", chart.value, chart.figure))
    if charts and not content.alarms:
        parts.append(Part("note", "No alarm was raised."))
    return Section("monitors", "Monitors", parts + _charts(charts), "No monitor was read before the run stopped.")


@dataclass(frozen=True)
class ScoreRow:
    """One line of an evaluation."""

    name: str
    top1: float | None
    top5: float | None = None
    per_class: float | None = None


_NAMES = {
    "trained": "trained",
    "random": "random encoder",
    "pixels": "raw pixels",
    "scratch": "from scratch",
    "teacher": "its teacher",
}


def score_rows(result: Mapping[str, Any]) -> list[ScoreRow]:
    """The encoder's score and its baselines', in that order, from one evaluation's JSON."""
    rows: list[ScoreRow] = []
    beside = result.get("baselines")
    measured: dict[str, Any] = {"trained": result.get("scores"), **(beside if isinstance(beside, Mapping) else {})}
    for key, scores in measured.items():
        if isinstance(scores, Mapping) and (top1 := _share(scores.get("top1"))) is not None:
            others = _share(scores.get("top5")), _share(scores.get("per_class"))
            rows.append(ScoreRow(_NAMES.get(key, key), top1, *others))
    return rows


def _share(value: Any) -> float | None:
    """A number of a file that somebody may have changed, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def evaluation(content: ReportContent) -> Section:
    """Each protocol's result beside both of its baselines."""
    parts: list[Part] = []
    for protocol, result in sorted(content.evaluations.items()):
        rows = score_rows(result)
        if rows:
            parts.append(Part("scores", rows, protocol))
        if isinstance(result.get("quality"), Mapping):
            parts.append(Part("table", _quality(result["quality"]), protocol))
        rest = {k: v for k, v in result.items() if k not in ("protocol", "scores", "baselines", "quality")}
        titled = bool(rows) or "quality" in result
        parts.append(Part("facts", _flat(rest), "" if titled else protocol))
    hint = content.missing.get("evaluation") or f"Not evaluated yet: selfsight evaluate {shlex.quote(content.name)}"
    return Section("evaluation", "Evaluation", parts, hint)


def _quality(found: Mapping[str, Any]) -> Rows:
    """Label-free readings, a column for each encoder."""
    found = {who: numbers for who, numbers in found.items() if isinstance(numbers, Mapping)}
    keys = list(next(iter(found.values()), {}))
    head = ["label-free quality", *(_NAMES.get(who, who) for who in found)]
    return Rows(head, [[key, *(_words(numbers.get(key)) for numbers in found.values())] for key in keys])


def _words(value: Any) -> str:
    """One setting's value."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    return ", ".join(_words(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += _flat(value, f"{name}.")
        else:
            lines.append((name, _words(value)))
    return lines


def _pictured(id: str, title: str, found: Picture | None, content: ReportContent, empty: str) -> Section:
    parts = [Part("picture", found)] if found else []
    return Section(id, title, parts, content.missing.get(id) or empty)


def views(content: ReportContent) -> Section:
    """What the model was shown."""
    again = "The data could not be opened again; selfsight report draws the views where they can be read."
    return _pictured("views", "Views as the model sees them", content.views, content, again)


def reconstructions(content: ReportContent) -> Section:
    """What the decoder makes of what it was not shown."""
    again = "No reconstruction: the run has no checkpoint yet, or its data could not be opened again."
    return _pictured("reconstructions", "Reconstructions", content.reconstructions, content, again)


def embedding_map(content: ReportContent) -> Section:
    """The images as the encoder arranges them."""
    found = content.embedding
    parts: list[Part] = []
    if found:
        labels = found.labels or [""] * len(found.names)
        captions = [f"{label} · {name}" if label else name for label, name in zip(labels, found.names, strict=True)]
        parts = [Part("map", PointMap(embedding(found), found.sprite, captions))]
    empty = content.missing.get("map") or "No map: it needs the run's encoder and its data."
    return Section("map", "Map of the embeddings", parts, empty)


def neighbours(content: ReportContent) -> Section:
    """Whom the encoder takes for alike."""
    found = content.neighbours
    parts: list[Part] = []
    if found:
        parts = [Part("note", _agreement(found)), Part("neighbours", found)]
    empty = content.missing.get("neighbours") or "No neighbours: they need the run's encoder and its data."
    return Section("neighbours", "Nearest neighbours", parts, empty)


def _agreement(found: Neighbours) -> str:
    said = f"Each row: an image, then its nearest among {found.searched:,} by cosine."
    if found.agreement is None:
        return said
    chance = f", {found.chance:.0%} by chance" if found.chance is not None else ""
    return f"{said} Over all of them, {found.agreement:.0%} of those neighbours carry the image's own label{chance}."


_SHARES = {
    "data_share": ("waiting for images", "second"),
    "render_share": ("rendering views", "class:4"),
    "step_share": ("forward, backward, update", "accent"),
}


def throughput(content: ReportContent) -> Section:
    """How fast it went, and where the time went."""
    table = content.timings
    speed = curve(
        "speed", "Throughput", "Images per second over all devices.", _steps(table), table.get("images_per_second", [])
    )
    shares: list[Share] = []
    for name, (words, role) in _SHARES.items():
        values = [value for value in table.get(name, [])[1:] or table.get(name, []) if value is not None]
        if values:
            shares.append(Share(words, sum(values) / len(values), role))
    parts: list[Part] = []
    if shares:
        rest = 1 - sum(part.share for part in shares)
        if rest > 0.005:
            shares.append(Share("the rest: logging, probes, checkpoints", rest, "rest"))
        parts += [Part("shares", shares, "Where the time went"), Part("note", _bottleneck(shares))]
    parts += _charts([speed])
    return Section("throughput", "Throughput", parts, "No timing was logged: timings.csv has no row yet.")


def _bottleneck(shares: Sequence[Share]) -> str:
    largest = max(shares, key=lambda part: part.share)
    said = f"The largest part, {largest.share:.1%}, went into {largest.name}."
    waiting = shares[0].share if shares[0].name == _SHARES["data_share"][0] else 0.0
    if waiting > 0.2:
        said += " Training waited for images: raise --workers, or store the images smaller."
    return said


def skipped(content: ReportContent) -> Section:
    """Images that could not be read."""
    parts: list[Part] = []
    if content.skipped:
        shown = content.skipped[:200]
        rows = [[row.get("position", ""), row.get("where", ""), row.get("reason", "")] for row in shown]
        more = f"; the first {len(shown)} of them" if len(content.skipped) > len(shown) else ""
        parts = [
            Part("note", f"{len(content.skipped):,} could not be read and were replaced{more}."),
            Part("table", Rows(["position", "image", "reason"], rows)),
        ]
    return Section("skipped", "Skipped images", parts, "None: every image that was asked for could be read.")


def settings(content: ReportContent) -> Section:
    """The resolved recipe, and the run file as it was written."""
    resolved = content.settings.get("resolved") or {}
    parts: list[Part] = []
    if resolved:
        parts.append(Part("facts", _flat(resolved), "Resolved recipe"))
    if content.settings:
        text = yaml.safe_dump(dict(content.settings), sort_keys=False, allow_unicode=True, width=100)
        parts.append(Part("code", text, "run.yaml"))
    return Section("recipe", "Recipe", parts, "run.yaml is missing.")


def repeat(content: ReportContent) -> Section:
    """How to do it again."""
    command = content.settings.get("command")
    parts: list[Part] = []
    if command:
        stranger = "What run.yaml has as its command is no training or import by selfsight, so it is not shown here."
        parts = [Part("code", command, "The command") if begins_a_run(command) else Part("note", stranger)]
        if "imported" not in content.settings:
            again = ["selfsight", "pretrain", "--from", f"{content.name}/run.yaml", "--out", "runs/again"]
            parts.append(Part("code", shlex.join(again), "From the run file"))
    return Section("repeat", "Repeat it", parts, "run.yaml does not hold the command.")


def begins_a_run(command: object) -> bool:
    """Whether a command is a single call that begins a run and deletes none: who copies it may not know who wrote it.

    >>> begins_a_run("selfsight pretrain simclr --lr 0.1"), begins_a_run("selfsight pretrain simclr; rm -r runs")
    (True, False)
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return False
    ours = words[:1] == ["selfsight"] and words[1:2] and words[1] in ("pretrain", "import", *catalogue.stages())
    return bool(ours) and shlex.join(words) == command and not any(word.startswith("--overwrite") for word in words)


def summary(content: ReportContent) -> list[tuple[str, str, str]]:
    """The page's head: name, value and remark of what one wants to know first."""
    flags, data = content.settings.get("flags") or {}, content.settings.get("data") or {}
    updates, epochs = last(_steps(content.metrics)), last(content.metrics.get("epoch", []))
    knn = {row.name: row.top1 for row in score_rows(content.evaluations.get("knn", {}))}
    facts: list[tuple[str, str, str]] = []
    if knn.get("trained") is not None:
        others = {name: value for name, value in knn.items() if name != "trained" and value is not None}
        versus = ", ".join(f"{name} {value:.1%}" for name, value in others.items())
        facts.append(("kNN accuracy", f"{knn['trained']:.1%}", versus))
    elif (probe := last(content.metrics.get("knn", []))) is not None:
        facts.append(("kNN while training", f"{probe:.1%}", "the online probe's last reading"))
    backbone = flags.get("backbone") or (content.settings.get("resolved") or {}).get("backbone")
    if backbone:
        size = flags.get("image_size") or (content.settings.get("resolved") or {}).get("image_size")
        facts.append(("Encoder", str(backbone), f"at {size} px" if size else ""))
    if data.get("name"):
        samples = data.get("samples")
        facts.append(("Data", str(data["name"]), f"{samples:,} images" if isinstance(samples, int) else ""))
    if updates is not None:
        planned = (content.settings.get("resolved") or {}).get("epochs")
        begun = f"in epoch {number(epochs + 1)}" if epochs is not None else ""
        facts.append(("Updates", number(updates + 1), f"{begun} of {planned}" if begun and planned else begun))
    speeds = [v for v in content.timings.get("images_per_second", []) if v is not None]
    if speeds:
        middle = sorted(speeds)[len(speeds) // 2]
        device = (content.settings.get("machine") or {}).get("device", "")
        facts.append(("Images per second", number(round(middle)), f"median{', ' + device if device else ''}"))
    facts.append(("Alarms", str(len(content.alarms)), content.alarms[-1].get("name", "") if content.alarms else "none"))
    return facts


def all_sections(content: ReportContent) -> list[Section]:
    """The page from top to bottom; reconstructions only where the method makes them."""
    order = [evaluation, curves, monitors, views, reconstructions, embedding_map, neighbours]
    order += [throughput, skipped, settings, repeat]
    if not content.reconstructs:
        order.remove(reconstructions)
    if "imported" in content.settings:  # it was not trained here
        order = [evaluation, settings, repeat]
    return [make(content) for make in order]
