"""The ladder: every method on the same images, with the same encoder and the same CPU time, scored alike.

Time is the CPU time of the process, not the clock's: a busy machine makes a run longer, not worse. Short trainings
are timed first, and the training is as many whole epochs as the budget holds: every schedule comes to its end in it.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from selfsight.data.cache import cache_folder
from selfsight.data.opening import open_splits
from selfsight.data.splits import limited
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import Encoder
from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.machine import cpu_name
from selfsight.engine.run import OpenRun, versions
from selfsight.errors import TrainingError, UserError
from selfsight.evaluation.baselines import PIXEL_VIEW, RawPixels, random_encoder
from selfsight.evaluation.features import Precision
from selfsight.evaluation.protocols import Contender, Settings, finetune_on, knn, linear_by_lbfgs
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import LabelledData, labelled, open_subject
from selfsight.evaluation.table import percent, show_table
from selfsight.recipes import catalogue
from selfsight.views.pipelines import plain_view

CONVOLUTIONAL: Mapping[str, Any] = {"backbone": "tiny_cnn"}
TRANSFORMER: Mapping[str, Any] = {"backbone": "vit_tiny_patch16_224", "patch_size": 4}
"""The encoder of the methods that work with nothing but tokens."""

WINDOWED: Mapping[str, Any] = {"backbone": "swin_tiny_patch4_window7_224", "patch_size": 2}
"""The encoder of the recipes with shifted windows."""

LOCAL: Mapping[str, Any] = {"backbone": "amdim_nano"}
"""The encoder of AMDIM, which needs features that see a part of the image only."""

HYBRID: Mapping[str, Any] = {"backbone": "convvit_tiny"}
"""The encoder of ConvMAE, which hides places of convolutional stages too."""

SHORT: Mapping[str, Any] = {"optimiser": "adamw", "batch_size": 250}
"""The papers' learning rates, LARS's above all, are made for a hundred thousand updates; here are a few thousand."""
MANY: Mapping[str, Any] = {"batch_size": 50}
"""Of masked methods, whose images do not meet in the loss: as many images are five times the updates. Half the rate."""
PEAK: Mapping[str, float] = {
    "tiny_cnn": 4e-3,
    "vit_tiny_patch16_224": 1e-3,
    "swin_tiny_patch4_window7_224": 1e-3,
    "amdim_nano": 2e-3,
    "convvit_tiny": 1e-3,
}
GRID: Mapping[str, Any] = {"patch": 16, "stride": 8, "width": 128, "depth": 2}
"""Patches of a 32 px image in three rows: the recipe's own seven take minutes an epoch on one thread."""

OWN: Mapping[str, Mapping[str, Any]] = {
    "adco": {"negatives": 1000},  # of 4096 most are no image's nearest after so few updates, and get no gradient
    "byol": {"momentum": 0.97},  # its paper's for the shortest training, 40 epochs
    "colorization": {"decoder_width": 64, "lr": 2e-3},
    "context_encoder": {"filters": 32, "lr": 1e-3},
    "convmae": {"decoder_depth": 1},  # with the encoder seeing a quarter, a deep decoder has most of the cost
    "counting": {"lr": 5e-4},  # at the others' rate its counts collapse, as the monitors say
    "cpc": {**GRID, "steps": 2, "skip": 0},
    "cpc_v2": {**GRID, "nearest": 1, "farthest": 2},
    "deepmim": {"decoder_depth": 1},
    "exemplar": {"surrogates": 2000, "smallest": 0.6, "largest": 0.8, "lr": 2e-3},  # objects fill these images
    "ibot": {
        "batch_size": 25,
        "momentum": 0.95,
        "frozen_epochs": 0.1,
        "drop_path": 0.0,
        "hidden": 512,
        "outputs": 1024,
        "head_norm": True,
    },
    "mae": {"decoder_depth": 1},
    "moco_v2": {"symmetric": False, "queue": 4000},  # as in its paper; the queue of the official CIFAR-10 notebook
    "moco_v3": {"hidden": 1024},  # heads of the encoder's cost, here and below
    "nce": {"negatives": 1024},  # a tenth of the images
    "nnclr": {"queue": 4000, "hidden": 512, "predictor_hidden": 1024},  # in a queue of all images each finds itself
    "pic": {"classes_lr": 0.08},  # what its tiny recipe has, for a larger batch
    "pixcontrast": {"hidden": 512},
    "pixpro": {"hidden": 512, "lr": 2e-3},  # at the others' rate it collapses
    "simsiam": {"projection": 512, "hidden": 512, "lr": 2e-3},
    "vicreg": {"projection": 512},
}
"""Hyper-parameters that a recipe for a thousand epochs of large images has otherwise."""
AS_PUBLISHED = ("rotation",)
"""Methods whose own optimiser, SGD at 0.1, is made for short trainings already."""

FIXED: Mapping[str, Any] = {
    "device": "cpu",
    "workers": 0,
    "probe_every": 0,
    "report": False,
    "overwrite": True,
}
"""Flags of every training: nothing but training takes time, and no worker's time is missed."""

TUNED: Mapping[str, Any] = {"epochs": 10, "batch_size": 100, "lr": 2.5e-3}
"""Of the fine-tuning, which is as short as the training; the rate is per 256 images: 1e-3 at its peak."""

OWN_ENCODER = ("localmim_swin",)
"""Methods with the encoder that their recipe has for small images: of WINDOWED's four stages the last has four places
in all, of which LocalMIM would leave one visible."""

Train = Callable[..., OpenRun]
"""``selfsight.pretrain`` or a stand-in: a method's name and flags in, a finished run out."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is the same for all methods; results measured by other rules are not mixed with these."""

    data: str
    samples: int = 10_000
    cpu_minutes: float = 12.0
    threads: int = 1
    seed: int = 0
    k: int = 20
    temperature: float = 0.07
    labels: float = 0.0
    """The share of them that fine-tuning has, too; 0 for none."""
    image_size: int = 32
    tests: int = 10_000
    """Test images at most."""
    precision: Precision = "32"
    """Of the scoring's forward passes; trainings take what the machine is quick in."""


def ladder(
    methods: Sequence[str] | None = None,
    *,
    data: str,
    out: Path,
    samples: int = 10_000,
    cpu_minutes: float = 12.0,
    threads: int = 1,
    seed: int = 0,
    labels: float = 0.0,
    image_size: int = 32,
    tests: int = 10_000,
    precision: Precision = "32",
    runs: Path = Path("runs/ladder"),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    train: Train | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains and scores ``methods`` (all by default), writes ``out`` after each, and prints the table.

    Args:
        methods: recipes by name, all that train an encoder by default; what ``out`` already holds by the same rules is
            not measured again. Several calls with different methods may run at once and share ``out``.
        data: images with labels; train and test as in ``evaluate``.
        out: the JSON file of the results.
        samples: training images, a keyed subset; of the test images at most as many.
        cpu_minutes: of the training, summed over threads: 12 are six minutes on two cores.
        threads: of the training and of the scoring. One wastes no CPU time on waiting for another.
        seed: of the subset, the training and the random encoders.
        labels: the share of them on which all weights are fine-tuned, too (masked methods); 0 for none.
        image_size: their side in pixels.
        tests: test images at most.
        precision: of the scoring's forward passes, ``32`` or ``bf16``.
        runs: where the runs are kept, one folder a method.
        overrides: flags of single methods that differ from their recipe; they are saved with the result.
        train: ``selfsight.pretrain``, or a stand-in for tests.
        say: where progress is told.
    """
    rules = Rules(
        data=Path(data).name,
        samples=samples,
        cpu_minutes=cpu_minutes,
        threads=threads,
        seed=seed,
        labels=labels,
        image_size=image_size,
        tests=tests,
        precision=precision,
    )
    names = list(methods) if methods else [name for name, card in catalogue.cards().items() if not card.yields]
    for name in names:
        catalogue.card(name)
    results = _opened(out, rules)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        learnt, held = open_splits(data, image_size=image_size, limit=samples, seed=seed)
        pair = learnt, limited(held, tests, seed=seed)
        about = labelled(pair, "the ladder")
        about.recorded(results, out)
        how = Settings(seed=seed, precision=precision, place=Place(cache_dir=cache_folder()))
        flags = {"data": data, "image_size": image_size, "limit": samples, "seed": seed, "threads": threads}
        for name in names:
            _add_baselines(results, rules, about, baseline_of(name), how)
            if "linear" in results["methods"].get(name, {}):
                say(f"{name}: measured before")
                continue
            own = {**flags_of(name), **(overrides or {}).get(name, {})}
            say(f"{name}: training for {cpu_minutes:g} CPU minutes")
            go = partial(train or _pretrain(), name, **{**FIXED, **flags, **own})
            results["methods"][name] = _climb(go, runs / name, rules, about, how) | {"flags": own}
            _save(out, results)
            say(f"{name}: {_in_words(results['methods'][name])}")
    finally:
        torch.set_num_threads(before)
    _save(out, results)
    show(results)
    return results


def encoder_of(name: str) -> Mapping[str, Any]:
    """The flags of the encoder a method climbs with: the small convolutional one, unless it needs another."""
    card = catalogue.card(name)
    if name in OWN_ENCODER:
        return {"backbone": card.small_encoder, **card.small_options}
    kinds = {"tokens": TRANSFORMER, "tokenizer": TRANSFORMER, "windows": WINDOWED, "local": LOCAL, "stages": HYBRID}
    return kinds.get(card.needs, CONVOLUTIONAL)


def baseline_of(name: str) -> Mapping[str, Any]:
    """The encoder whose random start a method stands beside: ``encoder_of``, with the norm that its recipe takes."""
    norm = catalogue.card(name).norm
    return {**encoder_of(name), **({"norm": norm} if norm else {})}


def called(encoder: Mapping[str, Any]) -> str:
    """An encoder's name in the table.

    >>> called({"backbone": "tiny_cnn", "norm": "layer"})
    'tiny_cnn, layer norm'
    """
    stages = f", {len(encoder['depths'])} stages" if "depths" in encoder else ""
    return encoder["backbone"] + stages + (f", {encoder['norm']} norm" if "norm" in encoder else "")


def flags_of(name: str) -> Mapping[str, Any]:
    """The flags of a method's training that are the ladder's and not its recipe's."""
    encoder = encoder_of(name)
    if name in AS_PUBLISHED:
        return encoder
    peak, own = PEAK[encoder["backbone"]], OWN.get(name, {})
    if name in OWN_ENCODER:  # which it has without flags, and no flags could describe
        encoder = {}
    if catalogue.card(name).family == "masked":
        return {**encoder, **SHORT, **MANY, "lr": peak / 2, **own}
    return {**encoder, **SHORT, "lr": peak, **own}


def whole_epochs(one: float, three: float, cpu_minutes: float) -> int:
    """As many whole epochs as the budget holds, at least one, from the CPU seconds of trainings of one and of three.

    What does not grow with the epochs, the building of the model, is part of the budget. Where noise hides what an
    epoch takes, it is taken to be all of the shorter training.

    >>> whole_epochs(25.0, 65.0, 12.0)
    35
    """
    each = (three - one) / 2 if three > one else one
    return max(math.floor(1 + (60 * cpu_minutes - one) / each), 1)


def _climb(go: Train, folder: Path, rules: Rules, data: LabelledData, how: Settings) -> dict[str, Any]:
    """Times short trainings, trains for the budget, scores what was learnt."""

    def timed(epochs: int, out: Path) -> tuple[Any, float]:
        start = time.process_time()
        run = go(epochs=epochs, out=out)
        if not run.finished:
            raise KeyboardInterrupt  # the training has saved and left; half a training is no result
        return run, time.process_time() - start

    short = folder.with_name(f"{folder.name}-timing")
    try:
        timed(1, short)  # fills caches, which the others will find filled
        one = timed(1, short)[1]
        long = one > 3 * rules.cpu_minutes  # seconds: an epoch of a twentieth of the budget is nearly all training
        epochs = whole_epochs(one, 3 * one if long else timed(3, short)[1], rules.cpu_minutes)
        began = time.perf_counter()
        run, spent = timed(epochs, folder)
        passed = time.perf_counter() - began
    except TrainingError as error:  # the other methods still climb; the next call tries this one again
        return {"failed": str(error)}
    subject = open_subject(run)
    trained = Contender(name="trained", encoder=subject.encoder, plain=subject.plain)
    return {
        "encoder": called({**baseline_of(folder.name), "backbone": subject.facts()["encoder"]}),
        **_scores(trained, rules, data, how),
        "epochs": epochs,
        "batch_size": run.settings["resolved"].get("batch_size"),
        "cpu_minutes": round(spent / 60, 2),
        "minutes": round(passed / 60, 2),
        "machine": {"processor": cpu_name(), "threads": rules.threads},
        "versions": versions(),
    }


def _scores(who: Contender, rules: Rules, data: LabelledData, how: Settings) -> dict[str, Any]:
    near, line = knn(who, data, how), linear_by_lbfgs(who, data, how)
    found = {"knn": near.numbers["top1"], "linear": line.numbers["top1"], "lambda": line.settings["lambda"]}
    if not rules.labels or who.name == "pixels":
        return found
    tuned = finetune_on(rules.labels)(who, data, replace(how, **TUNED))
    return {**found, "finetuned": tuned.numbers["top1"], "finetuning": tuned.settings}


def _add_baselines(
    results: dict[str, Any], rules: Rules, data: LabelledData, encoder: Mapping[str, Any], how: Settings
) -> None:
    """Raw pixels once, a random encoder once for each architecture."""
    known = results["baselines"]
    if "pixels" not in known:
        raw = cast(Encoder, RawPixels(channels=3))
        known["pixels"] = _scores(Contender(name="pixels", encoder=raw, plain=PIXEL_VIEW), rules, data, how)
    options = dict(encoder)
    backbone, name = options.pop("backbone"), called(encoder)
    if name not in known:
        plain = plain_view(rules.image_size, None)
        built = build_encoder(backbone, image_size=rules.image_size, **options)
        other = random_encoder(built, data.train, plain, seed=how.seed, place=how.place)
        known[name] = _scores(Contender(name="scratch", encoder=other, plain=plain), rules, data, how)


def _opened(out: Path, rules: Rules) -> dict[str, Any]:
    """The results so far; those by other rules are refused, not mixed."""
    if not out.exists():
        return {"rules": asdict(rules), "baselines": {}, "methods": {}}
    results = json.loads(out.read_text(encoding="utf-8"))
    since = {"labels": 0.0, "image_size": 32, "tests": 10_000, "precision": "32"}  # rules that older files do not name
    known = since | results["rules"]
    differing = [f"{key} {known.get(key)} -> {v}" for key, v in asdict(rules).items() if known.get(key) != v]
    if differing:
        raise UserError(f"{out} was measured by other rules ({', '.join(differing)}); give another --out or delete it")
    return results


def _save(out: Path, results: dict[str, Any]) -> None:
    """Writes the file, with what another process has measured for it meanwhile."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        others = json.loads(out.read_text(encoding="utf-8"))
        for part in ("baselines", "methods"):
            theirs, own = (
                {name: entry for name, entry in file[part].items() if "failed" not in entry}
                for file in (others, results)
            )
            results[part] = {**others[part], **results[part], **theirs, **own}
    write_atomically(out, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())


def _pretrain() -> Train:
    from selfsight.pretraining import pretrain  # noqa: PLC0415 - the engine, which a stand-in spares

    return pretrain


def _in_words(entry: Mapping[str, Any]) -> str:
    if "failed" in entry:
        return f"failed: {entry['failed']}"
    return f"kNN {percent(entry['knn'])}, linear {percent(entry['linear'])} after {entry['epochs']} epochs"


SCORES = {"knn": "kNN", "linear": "linear", "finetuned": "fine-tuned"}


def show(results: Mapping[str, Any]) -> None:
    """Prints the ladder, best linear score first, baselines below."""
    minutes = results["rules"]["cpu_minutes"]
    scores = [score for score in SCORES if score != "finetuned" or results["rules"].get("labels")]
    show_table(
        f"{results['data']['name']}: {results['data']['train']:,} images, {minutes:g} CPU minutes",
        ["method", "encoder", *(SCORES[score] for score in scores), "epochs", "CPU min"],
        list(_rows(results, scores)),
    )


def _rows(results: Mapping[str, Any], scores: Sequence[str]) -> Iterator[list[str]]:
    def percents(entry: Mapping[str, Any]) -> list[str]:
        return [percent(entry.get(score)) for score in scores]

    entries = sorted(results["methods"].items(), key=lambda item: -item[1].get("linear", -1))
    for name, entry in entries:
        if "failed" in entry:
            yield [name, "failed", *("-" for _ in scores), "-", "-"]
        else:
            yield [name, entry["encoder"], *percents(entry), str(entry["epochs"]), f"{entry['cpu_minutes']:.1f}"]
    for name, entry in results["baselines"].items():
        title = ["raw pixels", "-"] if name == "pixels" else ["random encoder", name]
        yield [*title, *percents(entry), "-", "-"]
