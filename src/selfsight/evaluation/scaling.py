"""How pretraining scales: one method on fractions of the data, with encoders of several sizes.

After Xie et al., "On Data Scaling in Masked Image Modeling", CVPR 2023, arXiv 2206.04664. Every training has the same
number of updates, whatever its data: fewer images are seen more often. Of each are measured the pretraining loss, on
images that were learnt from and on held-out ones, and what a protocol finds with the labels of all images. Where the
two losses part, the encoder has begun to learn its images by heart; there the paper finds that a larger one no longer
helps, and that the held-out loss tells the accuracy beforehand.

**Differences**: the paper fine-tunes Swin V2 on ImageNet after 125,000 updates and more; here the protocol is yours to
choose, and the defaults are a few minutes on the embedded world, which show how it works and prove nothing.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from selfsight.batches import Images
from selfsight.data.cache import cache_folder
from selfsight.data.opening import open_splits
from selfsight.data.protocol import Source
from selfsight.data.splits import limited
from selfsight.encoders.protocol import Encoder
from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.machine import cpu_name
from selfsight.engine.run import OpenRun, versions
from selfsight.errors import TrainingError, UserError
from selfsight.evaluation.baselines import PIXEL_VIEW, RawPixels, fresh, random_encoder
from selfsight.evaluation.evaluate import resolve_protocols
from selfsight.evaluation.pretext import last_update, task
from selfsight.evaluation.protocols import MEASURES, Contender, Settings
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import LabelledData, labelled, open_subject
from selfsight.evaluation.table import percent, show_table
from selfsight.method import Clock
from selfsight.pipelines.chain import how_to_begin
from selfsight.recipes import catalogue
from selfsight.report.scaling import write_pictures
from selfsight.views.protocol import Views

SIZES = ("test_vit", "vit_tiny_patch16_224")
"""Two transformers of timm: of 0.3 and of 5 million weights with patches of 4 px."""
FRACTIONS = (0.05, 0.25, 1.0)
RAW: Mapping[str, Any] = {"normalise_target": False}
"""On the embedded world, for methods that have it: many patches there are one colour, of which normalising leaves
noise."""

Train = Callable[..., OpenRun]
"""``selfsight.pretrain`` or a stand-in."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is the same for all trainings; results by other rules are not mixed with these."""

    method: str = "mae"
    data: str = "world"
    samples: int | None = None
    image_size: int = 32
    patch_size: int | None = 4
    updates: int = 150
    batch_size: int = 64
    optimiser: str = "adamw"
    lr: float | None = 1e-3
    protocols: tuple[str, ...] = ("linear-lbfgs",)
    held: int = 1000
    """Images that either loss is measured on."""
    seed: int = 0
    flags: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other flags of the trainings, the method's own among them."""


def scaling(
    rules: Rules,
    *,
    out: Path,
    sizes: Sequence[str] = SIZES,
    fractions: Sequence[float] = FRACTIONS,
    device: str = "cpu",
    threads: int | None = None,
    train: Train | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains and measures each size on each fraction; writes ``scaling.json``, ``.png`` and ``.html`` into ``out``.

    What the JSON file already holds is not measured again, and a training that was stopped goes on; sizes and
    fractions may be added by a later call. ``sizes`` are backbones by name, smallest first.
    """
    catalogue.card(rules.method)
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise UserError(f"a fraction of the data is {fraction:g}; it must lie above 0 and not above 1")
    rules = replace(rules, protocols=tuple(resolve_protocols(rules.protocols)))
    results = _opened(out, rules)
    if threads:
        torch.set_num_threads(threads)
    pair = open_splits(rules.data, image_size=rules.image_size, limit=rules.samples, seed=rules.seed)
    about = labelled(pair, "the accuracy of scaling", instead="")
    about.recorded(results, out / "scaling.json")
    how = Settings(seed=rules.seed, place=Place(device=device, cache_dir=cache_folder()))
    exam, known = _Exam(data=about, names=rules.protocols, how=how), results["baselines"]
    if "pixels" not in known:
        known["pixels"] = {"accuracy": exam.of_pixels()}
    for size in sizes:
        for fraction in fractions:
            name = f"{size} {fraction:g}"
            if "failed" not in results["points"].get(name, {"failed": ""}):
                say(f"{name}: measured before")
                continue
            say(f"{name}: training for {rules.updates} updates")
            go = partial(train or _pretrain(), rules.method, **_flags(rules, size, device))
            try:
                point, run = _trained(go, out / "runs" / name.replace(" ", "-"), rules, fraction, len(pair[0]))
                point |= _losses(run, pair[1], rules, how.place) | {"accuracy": exam.of(run)}
                if size not in known:
                    known[size] = exam.at_random(run)
            except TrainingError as error:  # the others go on; the next call tries this one again
                point = {"failed": str(error)}
            results["points"][name] = {"size": size, "fraction": fraction, **point}
            _save(out, results)
            say(f"{name}: {in_words(results['points'][name])}")
    _save(out, results)
    show(results)
    return results


def lengths(images: int, rules: Rules) -> tuple[int, int]:
    """The batch and the whole epochs that make ``rules.updates`` with so many images, as nearly as they can.

    >>> lengths(250, Rules()), lengths(5000, Rules()), lengths(30, Rules())
    ((64, 50), (64, 2), (30, 150))
    """
    batch = min(rules.batch_size, images)
    return batch, max(round(rules.updates / (images // batch)), 1)


def pretraining_loss(run: OpenRun, source: Source, *, clock: Clock, batch: int, seed: int, place: Place) -> float:
    """The method's loss on ``source`` with the run's last weights: nothing dropped, nothing learnt, masks by ``seed``.

    The batch is the training's, or all images where there are fewer; a last one that is not full is left out.
    """
    try:
        return task(run.recipe(), source, clock=clock, batch=batch, seed=seed, place=place)["loss"]
    except ValueError as error:  # a tokenizer or a guide that is another one by now
        raise UserError(f"{run.path}: the loss cannot be measured: {error}") from error


def _flags(rules: Rules, size: str, device: str) -> dict[str, Any]:
    known = catalogue.hyper_parameters(rules.method)
    raw = {name: value for name, value in RAW.items() if name in known and rules.data.startswith("world")}
    return {
        "data": rules.data,
        "backbone": size,
        "image_size": rules.image_size,
        "patch_size": rules.patch_size,
        "optimiser": rules.optimiser,
        "lr": rules.lr,
        "seed": rules.seed,
        "device": device,
        "probe_every": 0,
        "report": False,
        **raw,
        **rules.flags,
    }


def _trained(go: Train, folder: Path, rules: Rules, fraction: float, whole: int) -> tuple[dict[str, Any], OpenRun]:
    """A finished training, and what is known of it."""
    images = max(round(fraction * whole), 2)
    batch, epochs = lengths(images, rules)
    began = time.perf_counter()
    if (folder / "encoder.safetensors").exists():
        run = OpenRun(folder)
    else:
        run = go(limit=images, batch_size=batch, epochs=epochs, out=folder, **how_to_begin(folder))
    if not run.finished:
        raise KeyboardInterrupt  # the training has saved and left; the next call goes on with it
    about = {
        "images": images,
        "batch_size": batch,
        "epochs": epochs,
        "updates": epochs * (images // batch),
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "machine": {"processor": cpu_name(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    return about, run


def _losses(run: OpenRun, test: Source, rules: Rules, place: Place) -> dict[str, Any]:
    """The losses at the end of the training: of as many images that it has seen as of others."""
    run = OpenRun(run.path, whole=True)
    train = limited(run.trained_on(), rules.held, seed=rules.seed)
    batch = run.settings["resolved"]["batch_size"]
    # another seed than the training's: crops and masks that it has not met
    how: dict[str, Any] = {"clock": last_update(run), "batch": batch, "seed": rules.seed + 1, "place": place}
    held = limited(test, rules.held, seed=rules.seed)
    return {"loss": pretraining_loss(run, train, **how), "held_out_loss": pretraining_loss(run, held, **how)}


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """What the accuracy is of."""

    data: LabelledData
    names: Sequence[str]
    how: Settings

    def scores(self, name: str, encoder: Encoder, plain: Views[Images], *, only: Sequence[str] = ()) -> dict[str, Any]:
        """The share of right answers by each protocol."""
        who = Contender(name=name, encoder=encoder, plain=plain)
        return {p: MEASURES[p](who, self.data, self.how).numbers["top1"] for p in only or self.names}

    def of(self, run: OpenRun) -> dict[str, Any]:
        subject = open_subject(run)
        return self.scores("trained", subject.encoder, subject.plain)

    def of_pixels(self) -> dict[str, Any]:
        frozen = [p for p in self.names if not p.startswith("finetune")]
        return self.scores("pixels", cast(Encoder, RawPixels(channels=3)), PIXEL_VIEW, only=frozen) if frozen else {}

    def at_random(self, run: OpenRun) -> dict[str, Any]:
        """The run's encoder without its training, and its weights; where it is tuned, it is trained from scratch."""
        subject = open_subject(run)
        found: dict[str, Any] = {}
        for p in self.names:
            if p.startswith("finetune"):
                who, other = "scratch", fresh(subject.encoder, seed=self.how.seed)
            else:
                where: dict[str, Any] = {"seed": self.how.seed, "place": self.how.place}
                who, other = "random", random_encoder(subject.encoder, self.data.train, subject.plain, **where)
            found |= self.scores(who, other, subject.plain, only=[p])
        weights = sum(p.numel() for p in cast(nn.Module, subject.encoder).parameters())
        return {"parameters": weights, "accuracy": found}


def _opened(out: Path, rules: Rules) -> dict[str, Any]:
    """The results so far; those by other rules are refused, not mixed."""
    path, plain = out / "scaling.json", json.loads(json.dumps(asdict(rules)))
    if not path.exists():
        return {"rules": plain, "baselines": {}, "points": {}}
    results = json.loads(path.read_text(encoding="utf-8"))
    before = results["rules"]
    differing = [f"{key} {before.get(key)} -> {value}" for key, value in plain.items() if before.get(key) != value]
    if differing:
        raise UserError(f"{path} was measured by other rules ({', '.join(differing)}); give another --out or delete it")
    return results


def _save(out: Path, results: dict[str, Any]) -> None:
    """The results, and their pictures, each in place of an earlier one."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "scaling.json", (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    write_pictures(results, out)


def _pretrain() -> Train:
    from selfsight.pretraining import pretrain  # noqa: PLC0415 - the engine, which a stand-in spares

    return pretrain


def in_words(point: Mapping[str, Any]) -> str:
    """A line on what was measured."""
    if "failed" in point:
        return f"failed: {point['failed']}"
    scores = ", ".join(f"{name} {percent(value)}" for name, value in point["accuracy"].items())
    return f"loss {point['loss']:.4g}, held out {point['held_out_loss']:.4g}, {scores}"


def show(results: Mapping[str, Any]) -> None:
    """Prints a row for each training, then the baselines."""
    rules, data = results["rules"], results["data"]
    names = rules["protocols"]
    rows: list[list[str]] = []
    for point in results["points"].values():
        if "failed" in point:
            rows.append([point["size"], f"{point['fraction']:g}", "failed", "-", *("-" for _ in names)])
            continue
        losses = [f"{point[key]:.4g}" for key in ("loss", "held_out_loss")]
        rows.append([point["size"], f"{point['images']:,}", *losses, *(percent(point["accuracy"][n]) for n in names)])
    for name, entry in results["baselines"].items():
        title = "raw pixels" if name == "pixels" else f"{name} at random"
        rows.append([title, "-", "-", "-", *(percent(entry["accuracy"].get(n)) for n in names)])
    title = f"{rules['method']} on {data['name']}, {rules['updates']} updates of {rules['batch_size']} images"
    show_table(title, ["encoder", "images", "loss", "held out", *names], rows)
