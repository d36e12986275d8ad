"""A run folder becomes the plain data of its report."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from selfsight.data.protocol import Source
from selfsight.engine.run import open_run, read_settings
from selfsight.method import Method
from selfsight.recipes.catalogue import cards, stages
from selfsight.report.atlas import atlas
from selfsight.report.content import Column, Picture, ReportContent, Table
from selfsight.report.grid import read_originals, render_batch, sample_positions, tiles_sheet, undo, views_grid
from selfsight.report.thumbnails import picture
from selfsight.views.protocol import Views


def gather_content(run: Path) -> ReportContent:
    """Reads what the run wrote, and draws what its recipe, weights and data can still show.

    What cannot be shown (a run stopped early, data that moved) is left empty with its reason; only a folder that
    holds no run is an error.
    """
    settings = read_settings(run)
    card = {**cards(), **stages()}.get(settings.get("method", ""))
    evaluations, broken = _evaluations(run / "evaluation")
    missing = {"evaluation": broken} if broken else {}
    drawn = _draw(run, missing)
    return ReportContent(
        name=str(run),
        settings=settings,
        title=card.title if card else str(settings.get("method", "")),
        fact=card.fact if card else "",
        metrics=read_numbers(run / "metrics.csv"),
        timings=read_numbers(run / "timings.csv"),
        alarms=read_rows(run / "alarms.csv"),
        skipped=read_rows(run / "skipped.csv"),
        evaluations=evaluations,
        missing=missing,
        **drawn,
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV's rows as they stand; none where the file is missing. A row cut short by a kill gets empty cells."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as lines:
        return list(csv.DictReader(lines, restkey="", restval=""))


def read_numbers(path: Path) -> Table:
    """A CSV's columns as numbers: None where a cell is empty or holds none. A row without its step is left out."""
    rows = read_rows(path)
    columns: dict[str, Column] = {name: [] for name in rows[0] if name} if rows else {}
    for row in rows:
        if "step" in columns and _number(row["step"]) is None:
            continue
        for name, column in columns.items():
            column.append(_number(row.get(name, "")))
    return columns


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _evaluations(folder: Path) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Each protocol's JSON by name, and a line that names the files which hold none."""
    found: dict[str, Mapping[str, Any]] = {}
    broken: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            result = None
        if isinstance(result, dict):
            found[path.stem] = result
        else:
            broken.append(path.name)
    return found, f"Unreadable: {', '.join(broken)}; run selfsight evaluate again." if broken else ""


def _draw(run: Path, missing: dict[str, str]) -> dict[str, Any]:
    """The pictures; ``missing`` receives the reason of each that cannot be drawn."""
    drawn: dict[str, Any] = {}

    def attempt(names: tuple[str, ...], make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (ValueError, OSError, RuntimeError, KeyError, TypeError, ImportError) as problem:
            # whatever data that moved or a half-written checkpoint can raise: the rest of the page still stands
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            missing.update(dict.fromkeys(names, f"Could not be drawn: {reason}"))
            return None

    everything = ("views", "reconstructions", "map", "neighbours")
    opened = attempt(everything, lambda: open_run(run))
    if opened and opened.imported:  # no images go with it
        return drawn
    source = opened and attempt(everything, opened.trained_on)
    recipe = source and attempt(everything, opened.recipe)
    if not recipe:
        return drawn
    method: Method[Any] = recipe.method
    drawn["reconstructs"] = hasattr(method, "reconstruct")
    seed = int((opened.settings.get("flags") or {}).get("seed") or 0)
    drawn["views"] = attempt(("views",), lambda: draw_views(recipe.views, source, seed))
    if drawn["reconstructs"]:
        drawn["reconstructions"] = attempt(
            ("reconstructions",), lambda: draw_reconstructions(method, recipe.views, source, seed)
        )
    names = ("map", "neighbours")
    found = attempt(names, lambda: atlas(method.encoder, recipe.views.plain, source, seed=seed))
    if found:
        drawn["embedding"], drawn["neighbours"] = found
    return drawn


OUTLINED = " What was hidden is outlined."


def draw_views(views: Views[Any], source: Source, seed: int) -> Picture:
    """Six images and what training made of them in its first epochs."""
    caption = "Left: the image. Right: what the model was given in the first epochs, normalisation undone."
    return picture(views_grid(views, source, seed=seed, paper=None), caption)


@torch.no_grad()
def draw_reconstructions(method: Any, views: Views[Any], source: Source, seed: int) -> Picture:
    """The image, what the encoder saw of it, what the decoder made of the rest."""
    originals = read_originals(source, sample_positions(source, 12, seed=seed))
    batch = render_batch(views, originals, epoch=0, seed=seed)
    training = method.training
    method.eval()
    try:
        made = method.reconstruct(batch)
    finally:
        method.train(training)
    stacks = [undo(views, x) for x in (made.original, made.masked, made.reconstruction)]
    usual = "In threes: the image, what the encoder saw of it, and the decoder's picture of the rest."
    caption = getattr(method, "pictures", usual) + (OUTLINED if made.hidden is not None else "")
    side = min(128, max(64, stacks[0].shape[-1]))
    return picture(tiles_sheet(stacks, side, across=2, outlined=made.hidden), caption)
