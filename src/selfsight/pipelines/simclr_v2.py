"""SimCLR v2 whole: pretraining without labels, fine-tuning on few, distillation without any.

Chen, Kornblith, Swersky, Norouzi, Hinton, "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS
2020, arXiv 2006.10029. The stages: ``selfsight.recipes.simclr_v2``, ``finetune`` and ``distill``.

As in the paper, the fine-tuned network is first distilled into its own architecture, and where a smaller student is
asked for, it learns from that one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsight.data.cache import cache_folder
from selfsight.data.protocol import Source
from selfsight.data.workers import default_workers
from selfsight.engine.loop import Ending
from selfsight.engine.machine import pick_device, pick_precision
from selfsight.engine.run import open_run
from selfsight.engine.start import Say
from selfsight.errors import UserError
from selfsight.evaluation.classifier import NAME, Labels, evaluate_classifier, open_labels
from selfsight.evaluation.evaluate import measure, save, show
from selfsight.evaluation.processes import processes
from selfsight.evaluation.protocols import Settings
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import open_subject
from selfsight.flags import Device, Flags, Optimiser, Precision
from selfsight.flags import seconds as seconds_of
from selfsight.pipelines.chain import (
    SETTINGS,
    SUMMARY,
    Stage,
    begin,
    carry_out,
    named_after,
    plain_setting,
    settle,
    show_summary,
)
from selfsight.pipelines.stages import facts_of, run_stage
from selfsight.pretraining import run_from_flags
from selfsight.recipes.assembly import Assembly, assemble

PROBE = "linear-lbfgs"
LEAST = 5
"""Labelled images that the linear probe needs."""
DEFAULTS: Mapping[str, Any] = {
    "data": "world",
    "fraction": 0.1,
    "head_layers": 1,
    "label_weight": 0.0,
    "channels": 3,
    "optimiser": "paper",
    "seed": 0,
}
LATER: Mapping[str, str] = {
    **dict.fromkeys(("head_layers", "finetune_epochs", "finetune_batch_size", "finetune_lr"), "2-finetune"),
    **dict.fromkeys(
        ("temperature", "label_weight", "distill_epochs", "distill_batch_size", "distill_lr"), "3-self-distill"
    ),
    "student": "4-distill",
}
"""The first stage that a setting is for, of those that are not for the first of all."""


def simclr_v2(
    *,
    out: Path,
    data: str | None = None,
    labels: Path | None = None,
    fraction: float | None = None,
    backbone: str | None = None,
    student: str | None = None,
    head_layers: int | None = None,
    temperature: float | None = None,
    label_weight: float | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    optimiser: Optimiser | None = None,
    pretrain_epochs: int | None = None,
    pretrain_batch_size: int | None = None,
    pretrain_lr: float | None = None,
    finetune_epochs: int | None = None,
    finetune_batch_size: int | None = None,
    finetune_lr: float | None = None,
    distill_epochs: int | None = None,
    distill_batch_size: int | None = None,
    distill_lr: float | None = None,
    seed: int | None = None,
    device: Device = "auto",
    devices: int = 1,
    precision: Precision = "auto",
    workers: int | None = None,
    threads: int | None = None,
    max_time: str | None = None,
    save_minutes: float = 5.0,
    report: bool = True,
    overwrite: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """From unlabelled images and few labels to a classifier: pretrain, fine-tune, distill (SimCLR v2).

    Each stage is a run in a folder of its own, OUT/1-pretrain, OUT/2-finetune, OUT/3-self-distill and, with --student,
    OUT/4-distill. The same call again, or one with --out alone, goes on where the first was stopped; settings of stages
    that have not begun may still change. At the end a table has each stage's accuracy on test images beside its
    baselines; OUT/summary.json has the same.

    Args:
        out: the pipeline's folder.
        data: folder of images, list file, parquet, Hub or torchvision name, world. Default: world.
        labels: CSV of path,label, where no folders name the classes.
        fraction: share of each class's labels to use, 0.01 is 1 %; 1 where only few images have labels. Default: 0.1.
        backbone: any timm model, small_cnn or tiny_cnn. Default: the paper's.
        student: a smaller backbone to distill into at the end. Default: none.
        head_layers: layers of the pretraining's head that fine-tuning keeps. Default: 1.
        temperature: softens the teacher's and the student's answers. Default: 0.1 for a student of the teacher's
            architecture that learns without labels, else 1.
        label_weight: weight of the labels beside the teacher's answers in distillation. Default: 0, without labels.
        image_size: pixels a side. Default: the data's own up to 96, else 224.
        channels: of the images. Default: 3.
        limit: use only so many images, a random subset by key.
        optimiser: paper, or adamw, which learns faster in trainings too short for the paper's. Default: paper.
        pretrain_epochs: passes over all images. Default: the paper's, as for all that follows.
        pretrain_batch_size: samples per update over all devices.
        pretrain_lr: peak learning rate, already scaled by the batch.
        finetune_epochs: passes over the labelled images.
        finetune_batch_size: samples per update.
        finetune_lr: peak learning rate.
        distill_epochs: passes over all images, for each distillation.
        distill_batch_size: samples per update.
        distill_lr: peak learning rate.
        seed: seed of all random numbers. Default: 0.
        device: where to train.
        devices: processes, one for each device.
        precision: auto is bf16 where the processor has it, else 32.
        workers: processes that decode large images. Default: by the machine.
        threads: CPU threads of each process.
        max_time: save and leave after so long: 90s, 30m, 12h, 2d.
        save_minutes: minutes between two checkpoints.
        report: write a report.html for each stage.
        overwrite: delete the pipeline in --out first.
        say: where messages and tables go, from Python; silent by default.

    Returns:
        What summary.json holds, and how the call ``ended``: "done", "stopped" or "max-time".
    """
    asked = {name: value for name, value in locals().items() if name in _LEARNING}
    given = {name for name, value in asked.items() if value is not None}
    tell = say or (lambda text: None)
    plain = {name: plain_setting(name, DEFAULTS.get(name) if value is None else value) for name, value in asked.items()}
    chain = _Chain(
        settings=settle(
            out, "simclr_v2", plain, given, kinds=_LEARNING, defaults=DEFAULTS, later=LATER, overwrite=overwrite
        ),
        execution={
            "device": device,
            "devices": devices,
            "precision": precision,
            "workers": workers,
            "threads": threads,
            "save_minutes": save_minutes,
            "report": report,
        },
        say=tell,
        quiet=say is None,
    )
    limit_s = seconds_of(max_time)
    stages = chain.stages(out)
    labelled = chain.check()
    tell(f"{'begins' if overwrite or not (out / SETTINGS).exists() else 'goes on'} in {out}")
    begin(out, "simclr_v2", chain.settings, overwrite=overwrite)
    again = "the same command without --overwrite" if overwrite else "the same command"
    ended = carry_out(out, stages, seconds=limit_s, again=again, say=tell)
    if say is not None and (out / SUMMARY).exists():
        kept, tested = len(chain.kept(labelled)), len(labelled.data.test)
        title = f"SimCLR v2 on {labelled.whole.name}: {len(labelled.whole):,} images, {kept:,} with labels"
        show_summary(out, f"{title}, {tested:,} test images")
    found = json.loads((out / SUMMARY).read_text(encoding="utf-8")) if (out / SUMMARY).exists() else {"stages": {}}
    return {**found, "ended": ended}


_EXECUTION = frozenset(
    "out device devices precision workers threads max_time save_minutes report overwrite say".split()
)
_LEARNING = {k: kind for k, kind in simclr_v2.__annotations__.items() if k not in (*_EXECUTION, "return")}
"""What a pipeline.yaml holds, and of what kind each is."""


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """The pipeline's stages, made of its settings."""

    settings: Mapping[str, Any]
    execution: Mapping[str, Any]
    say: Say
    quiet: bool

    def flags(self, stage: str, **more: Any) -> dict[str, Any]:
        """The flags that a stage's settings mean, without those that are left to the recipe."""
        names = ("epochs", "batch_size", "lr")
        own = {name: self.settings[f"{stage}_{name}"] for name in names}
        every = {**own, **{name: self.settings[name] for name in ("optimiser", "seed")}, **self.execution, **more}
        return {name: value for name, value in every.items() if value is not None}

    @property
    def pretraining(self) -> Flags:
        names = ("data", "labels", "backbone", "image_size", "channels", "limit")
        chosen = {name: self.settings[name] for name in names if self.settings[name] is not None}
        if "labels" in chosen:
            chosen["labels"] = Path(chosen["labels"])
        return Flags(**self.flags("pretrain", **chosen))

    def kept(self, labels: Labels) -> Source:
        """The images whose labels are used."""
        return labels.kept(self.settings["fraction"], self.settings["seed"])

    def check(self) -> Labels:
        """Refuses before the first stage what a later one would refuse after hours."""
        how = self.settings
        if not 0 < how["fraction"] <= 1:
            raise UserError(f"--fraction is {how['fraction']}; it lies above 0, and 1 is all labels")
        if how["head_layers"] not in range(4):
            raise UserError(f"--head-layers is {how['head_layers']}; the head has 3 layers: use 0 to 3")
        if how["temperature"] is not None and not how["temperature"] > 0:
            raise UserError(f"--temperature must be greater than 0, not {how['temperature']:g}")
        if not 0 <= how["label_weight"] < 1:
            raise UserError(f"--label-weight is {how['label_weight']}; it lies from 0, without labels, to below 1")
        for stage in ("pretrain", "finetune", "distill"):
            with named_after(stage):
                Flags(**self.flags(stage)).check()
        flags = self.pretraining
        flags.check()
        pick_precision(flags.precision, pick_device(flags.device))
        labels = open_labels(flags.data, flags, flags.image_size)
        whole, kept = labels.whole, len(self.kept(labels))
        if kept < LEAST:
            raise UserError(f"--fraction {how['fraction']} leaves {kept} labelled images; give at least {LEAST}")
        for stage, images, which in (("finetune", kept, "labelled images"), ("distill", len(whole), "images")):
            batch = how[f"{stage}_batch_size"]
            if batch is not None and batch > images:
                raise UserError(f"--{stage}-batch-size is {batch}, but there are {images} {which}; use fewer")
        with named_after("pretrain"):
            made = assemble("simclr_v2", flags, {}, samples=len(whole), native=whole.native)
        self.check_later(made, native=whole.native, samples={"finetune": kept, "distill": len(whole)})
        return labels

    def check_later(self, first: Assembly, *, native: tuple[int, int, int] | None, samples: Mapping[str, int]) -> None:
        """Assembles the stages after the first: batches that the devices cannot share, a student that is unknown."""
        how, view = self.settings, facts_of(first.recipe.views.plain)
        done = {"epochs": first.recipe.epochs, "batch_size": first.recipe.batch_size}
        pretext = {"method": "simclr_v2", "hyper": {}, **done, "view": view}
        shared = {name: how[name] for name in ("backbone", "channels")} | {"image_size": view["size"]}
        later: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("finetune", shared, {"head_layers": how["head_layers"]}),
            ("distill", {**shared, "backbone": how["student"] or how["backbone"]}, {"teacher": "", "classes": ["any"]}),
        ]
        for stage, flags, hyper in later:
            with named_after(stage):
                assemble(
                    stage,
                    Flags(**self.flags(stage, **flags)),
                    {**hyper, "pretext": pretext},
                    samples=samples[stage],
                    native=native,
                    classes=1,
                    training=False,
                )

    def stages(self, out: Path) -> list[Stage]:
        """Each stage with its folder's name, in their order."""
        how = self.settings
        softly = {name: how[name] for name in ("temperature", "label_weight") if how[name] is not None}
        tuning = {name: how[name] for name in ("fraction", "head_layers")} | {"label_seed": how["seed"]}
        found = [
            Stage(
                name="1-pretrain",
                what="pretrained; linear probe",
                protocol=PROBE,
                run=self._pretrain,
                measure=self._probe,
            ),
            self._stage("2-finetune", "fine-tuned", "finetune", out / "1-pretrain", tuning),
            self._stage("3-self-distill", "distilled into its own kind", "distill", out / "2-finetune", softly),
        ]
        if how["student"] is not None:
            small = {**softly, "backbone": how["student"]}
            found.append(self._stage("4-distill", "distilled", "distill", out / "3-self-distill", small))
        return found

    def _stage(self, name: str, what: str, kind: str, argument: Path, own: Mapping[str, Any]) -> Stage:
        def run(folder: Path, begin: dict[str, Any]) -> Ending:
            options = {**self.flags(kind), **own, "out": folder, **begin}
            with named_after(kind):
                return run_stage(kind, argument, options, say=self.say, quiet=self.quiet)[1]

        def measured(folder: Path) -> object:
            where = {"device": self.execution["device"], "workers": self.execution["workers"]}
            return evaluate_classifier(open_run(folder), quiet=self.quiet, **where)

        return Stage(name=name, what=what, protocol=NAME, run=run, measure=measured)

    def _pretrain(self, folder: Path, begin: dict[str, Any]) -> Ending:
        flags = Flags(**{**vars(self.pretraining), "out": folder, **begin})
        with named_after("pretrain"):
            return run_from_flags("simclr_v2", flags, {}, say=self.say, quiet=self.quiet)[1]

    def _probe(self, folder: Path) -> object:
        """A linear classifier of the frozen features, from the same labels that fine-tuning gets."""
        subject = open_subject(folder)
        run = open_run(folder)
        labels = open_labels(run.data(), run.flags, run.image_size)
        pair = self.kept(labels), labels.data.test
        with processes(self.execution["device"]) as where:
            workers = self.execution["workers"]
            place = Place(
                device=where, workers=default_workers(1) if workers is None else workers, cache_dir=cache_folder()
            )
            results = measure(subject, pair, [PROBE], Settings(seed=self.settings["seed"], place=place))
        save(results, folder / "evaluation")
        if not self.quiet:
            show(results)
        return results
