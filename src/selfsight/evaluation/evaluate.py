"""How good is it: each protocol's score beside its baselines, measured in the same call on the same data."""

import gc
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

from selfsight import distributed
from selfsight.batches import Images
from selfsight.data.cache import cache_folder
from selfsight.data.protocol import Source
from selfsight.data.workers import default_workers
from selfsight.encoders.protocol import Encoder
from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.run import OpenRun
from selfsight.errors import UserError, unknown
from selfsight.evaluation.baselines import PIXEL_VIEW, RawPixels, fresh, random_encoder
from selfsight.evaluation.features import Precision
from selfsight.evaluation.linear_sgd import Paper
from selfsight.evaluation.pretext import pretext
from selfsight.evaluation.processes import processes
from selfsight.evaluation.protocols import ALIASES, LAYER, MEASURES, Contender, Finding, Settings, label_free
from selfsight.evaluation.regularisation import PARTS
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import LabelledData, Subject, channels_of, labelled, open_pair, open_subject
from selfsight.evaluation.table import percent, show_table
from selfsight.flags import SEEDS
from selfsight.views.protocol import Views

LABEL_FREE = ("quality", "pretext")
"""The protocols that need no labels."""
NAMES = {
    "trained": "trained",
    "random": "random encoder",
    "pixels": "raw pixels",
    "scratch": "from scratch",
    "teacher": "its teacher",
}


def evaluate(
    run: Path | str | OpenRun | Encoder,
    *,
    data: Any = None,
    protocols: Sequence[str] = ("knn", "linear"),
    limit: int | None = None,
    labels: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    k: int = 20,
    temperature: float = 0.07,
    which: Literal["last", "best"] = "last",
    head_layers: int = 0,
    paper: Paper | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    smoothing: float | None = None,
    drop_path: float | None = None,
    workers: int | None = 0,
    precision: Precision = "32",
    plain: Views[Images] | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measures an encoder by each protocol, prints a table and, for a run, saves ``evaluation/PROTOCOL.json`` in it.

    Args:
        run: a run's folder, or an encoder.
        data: as for pretraining; the run's own by default. Train is compared with test.
        protocols: ``knn``, ``linear`` (short for ``linear-lbfgs``), ``linear-sgd``, ``finetune`` (short for
            ``finetune-1``, ``finetune-10`` and ``finetune-100``, per cent of the labels), ``attentive`` (a probe that
            attends to the patches), ``layerwise`` (a probe behind each stage), ``quality`` (no labels),
            ``pretext`` (a run's own task on held-out images; no labels).
        limit: a keyed random subset of so many images.
        labels: a CSV of path,label.
        device: ``cpu``, ``cuda`` or ``auto``.
        seed: of the subset, the held-out fifth, augmentation and random encoders.
        k, temperature: of the nearest neighbours.
        which: a run's last weights, or the checkpoint with the best online probe.
        head_layers: so many layers of the run's head count as part of the encoder, for every protocol (SimCLR v2
            fine-tunes with the first); the results are saved as ``PROTOCOL-head1.json``.
        paper: whose linear probe ``linear-sgd`` is; ``mae`` for masked image models, else ``moco``.
        epochs, batch_size, lr: of ``linear-sgd``, ``attentive``, ``layerwise`` and ``finetune``; the papers' by
            default, and saved either way.
        layer_decay: of ``finetune``: each layer's rate, as a share of the next one's.
        mixup, cutmix, smoothing, drop_path: of ``finetune``, 0 for none; by default MAE's for a transformer on all
            labels, else none. They are saved either way.
        workers: processes that decode large images; None takes as many as the machine has cores to spare.
        precision: ``32``, or ``bf16`` for the encoder's forward pass.
        plain: the evaluation view; the recipe's by default.
        quiet: print nothing.

    Returns:
        For each protocol what its JSON file holds: ``scores`` (shares between 0 and 1) and ``baselines``, or for
        ``quality`` the readings, with settings, data fingerprints, seed and version.
    """
    names = resolve_protocols(protocols)
    parts = mixup, cutmix, smoothing, drop_path
    _refuse_below(1, k=k, epochs=epochs, batch_size=batch_size)
    _refuse_below(0, workers=workers, head_layers=head_layers, seed=seed)
    for name, value in (("temperature", temperature), ("lr", lr)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value}; it must be above 0")
    subject = open_subject(run, plain=plain, which=which, head_layers=head_layers)
    with processes(device) as where:
        helpers = default_workers(distributed.world_size()) if workers is None else workers
        place = Place(device=where, workers=helpers, cache_dir=cache_folder())
        how = Settings(
            k=k,
            temperature=temperature,
            paper=paper or subject.probe,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            precision=precision,
            place=place,
            layer_decay=layer_decay,
            regularisation={name: value for name, value in zip(PARTS, parts, strict=True) if value is not None},
        )
        pair = open_pair(subject, data, limit=limit, labels=labels, seed=seed)
        results = measure(subject, pair, names, how)
        if distributed.rank() == 0:
            if subject.run is not None:
                save(results, subject.run.path / "evaluation")
            if not quiet:
                show(results)
    return results


def _refuse_below(least: int, **given: int | None) -> None:
    for name, value in given.items():
        if value is not None and not least <= value < SEEDS:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least} and below 2^63")


def resolve_protocols(protocols: Iterable[str]) -> list[str]:
    """Full names, each once, in the order asked for; an unknown name is a ``UserError`` with the nearest one.

    >>> resolve_protocols(["linear", "knn", "linear-lbfgs"])
    ['linear-lbfgs', 'knn']
    """
    known = [*MEASURES, *ALIASES, *LABEL_FREE]
    names: dict[str, None] = {}
    for name in protocols:
        if name not in known:
            raise unknown("protocol", name, known)
        names.update(dict.fromkeys(ALIASES.get(name, (name,))))
    if not names:
        raise UserError(f"no protocol to measure; choose from {', '.join(sorted(known))}")
    return list(names)


def measure(
    subject: Subject, pair: tuple[Source, Source], names: Sequence[str], how: Settings
) -> dict[str, dict[str, Any]]:
    """Every protocol's result; one contender's features are in memory at a time."""
    scored = [name for name in names if name not in LABEL_FREE]
    data = labelled(pair, scored[0]) if scored else None
    findings: dict[str, dict[str, Finding]] = {name: {} for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for who, its_names in _contenders(subject, pair[0], [name for name in names if name != "pretext"], how):
        for name in its_names:
            start = time.perf_counter()
            if name == "quality":
                found = label_free(who, pair[0], how)
            else:
                found = MEASURES[name](who, cast(LabelledData, data), how)
            findings[name][who.name] = found
            seconds[name] += time.perf_counter() - start
    measured_on = {
        "labels": data.facts() if data else {},
        "none": {"name": pair[0].name, "train": len(pair[0]), "fingerprint": pair[0].fingerprint},
    }
    if "pretext" in names:
        start = time.perf_counter()
        its_task = own_task(subject, pair[1], how)
        seconds["pretext"] = time.perf_counter() - start
    return {
        name: {
            "protocol": name,
            **subject.facts(),
            **(its_task if name == "pretext" else _numbers(name, findings[name], subject, how)),
            "data": measured_on["none" if name in LABEL_FREE else "labels"],
            "seed": how.seed,
            "selfsight": version("selfsight"),
            "seconds": round(seconds[name], 2),
        }
        for name in names
    }


def own_task(subject: Subject, test: Source, how: Settings) -> dict[str, Any]:
    """The method's own numbers on test and on what it was trained on, and those of its start on test."""
    if subject.run is None:
        raise UserError("--protocol pretext measures a method at its own task; give the run, not its encoder")
    return {"task": pretext(subject.run, test, which=subject.which, seed=how.seed, place=how.place)}


def _contenders(
    subject: Subject, train: Source, names: Sequence[str], how: Settings
) -> Iterator[tuple[Contender, list[str]]]:
    """The trained encoder and what it is compared with, each with its protocols; made when it is its turn."""
    frozen = [name for name in names if not name.startswith("finetune")]
    tuned = [name for name in names if name.startswith("finetune")]
    yield Contender(name="trained", encoder=subject.encoder, plain=subject.plain), list(names)
    gc.collect()
    if frozen:
        other = random_encoder(subject.encoder, train, subject.plain, seed=how.seed, place=how.place)
        yield Contender(name="random", encoder=other, plain=subject.plain), frozen
        del other
    if tuned:
        yield Contender(name="scratch", encoder=fresh(subject.encoder, seed=how.seed), plain=subject.plain), tuned
    by_label = [name for name in frozen if name != "quality"]
    if by_label:
        raw = RawPixels(channels=channels_of(subject.encoder))
        yield Contender(name="pixels", encoder=cast(Encoder, raw), plain=PIXEL_VIEW), by_label


def _numbers(name: str, found: Mapping[str, Finding], subject: Subject, how: Settings) -> dict[str, Any]:
    """One protocol's settings, scores and baselines."""
    own = found["trained"].settings
    described = getattr(subject.plain, "describe", None)
    view = described() if described else type(subject.plain).__name__
    settings = {"feature": "pooled", **own, "view": view, "precision": how.precision}
    if name == "quality":
        return {"settings": settings, "quality": {who: dict(finding.numbers) for who, finding in found.items()}}
    baselines = {
        who: {**finding.numbers, "settings": {key: v for key, v in finding.settings.items() if own.get(key) != v}}
        for who, finding in found.items()
        if who != "trained"
    }
    return {"settings": settings, "scores": dict(found["trained"].numbers), "baselines": baselines}


def save(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Writes each result as ``PROTOCOL.json``, whole or not at all.

    Of the best checkpoint it is ``PROTOCOL-best.json``, with layers of the head ``PROTOCOL-head1.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
        best = "-best" if result.get("weights") == "best" else ""
        head = f"-head{result['head_layers']}" if result.get("head_layers") else ""
        # a folder of images may have a name that is no text: what stands for it is JSON too
        write_atomically(folder / f"{name}{head}{best}.json", (text + "\n").encode(errors="backslashreplace"))


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints all scores as one table, and label-free quality as another."""
    rows = []
    for name, result in results.items():
        if "scores" not in result:
            continue
        for who, numbers in {"trained": result["scores"], **result["baselines"]}.items():
            label = name if who == "trained" else ""
            cells = [percent(numbers[key]) for key in ("top1", "top5", "per_class")]
            rows.append([label, NAMES[who], *cells, _short(result["settings"]) if who == "trained" else ""])
    if rows:
        data = next(result["data"] for result in results.values() if "scores" in result)
        title = (
            f"{data['name']}: {data['train']:,} training and {data['test']:,} test images, {data['classes']} classes"
        )
        show_table(title, ["protocol", "features", "top-1", "top-5", "per class", "settings"], rows)
    for result in results.values():
        layers = [key for key in result.get("scores", {}) if key.startswith(LAYER)]
        if layers:
            whose = {"trained": result["scores"], **result["baselines"]}
            whose = {who: numbers for who, numbers in whose.items() if layers[0] in numbers}
            rows = [[key, *(percent(numbers[key]) for numbers in whose.values())] for key in layers]
            show_table("", ["top-1 behind", *(NAMES[who] for who in whose)], rows)
    if "pretext" in results:
        whose = {who: numbers for who, numbers in results["pretext"]["task"].items() if who != "settings"}
        rows = [[key, *(_number(numbers[key]) for numbers in whose.values())] for key in whose["trained"]]
        show_table("", ["its own task", "held-out images", "training images", "held-out, untrained"], rows)
    if "quality" in results:
        found = results["quality"]["quality"]
        columns = ["label-free quality", *(NAMES[who] for who in found)]
        keys = next(iter(found.values()))
        show_table("", columns, [[key, *(_number(found[who][key]) for who in found)] for key in keys])


def _short(settings: dict[str, Any]) -> str:
    left_out = {"feature", "view", "precision", "lambda_from", "fraction"}
    left_out |= {name for name in PARTS if settings.get(name) == 0}
    return ", ".join(f"{key} {_number(value)}" for key, value in settings.items() if key not in left_out)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
