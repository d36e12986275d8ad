"""Noisy Student whole: a teacher learns from labels, then student after student, each the next one's teacher.

Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves ImageNet Classification", CVPR 2020, arXiv 1911.04252.
The stage of every round: ``selfsight.recipes.noisy_student``. In the paper the first student is larger than the teacher
and the others are like it, three in all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from selfsight.data.protocol import Source
from selfsight.engine.loop import Ending
from selfsight.engine.machine import pick_device, pick_precision
from selfsight.engine.run import open_run
from selfsight.engine.start import Say
from selfsight.errors import UserError
from selfsight.evaluation.classifier import NAME, Labels, evaluate_classifier, open_labels
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
from selfsight.pipelines.stages import run_stage, usual_share
from selfsight.recipes.assembly import Assembly, assemble, resolve_size
from selfsight.recipes.noisy_student import NONE

DEFAULTS: Mapping[str, Any] = {
    "data": "world",
    "fraction": 0.1,
    "rounds": 3,
    "threshold": 0.3,
    "temperature": 1.0,
    "hard": False,
    "smoothing": 0.1,
    "average": 0.9999,
    "channels": 3,
    "optimiser": "paper",
    "seed": 0,
}
FIRST_STUDENT = "2-student"
ANSWERS = ("ratio", "threshold", "per_class", "temperature", "hard")
NOISE = ("magnitude", "dropout", "drop_path", "smoothing", "average")
LATER: Mapping[str, str] = dict.fromkeys(
    (*ANSWERS, "student", "student_epochs", "student_batch_size", "student_lr"), FIRST_STUDENT
) | {"rounds": "never"}
"""The first stage that a setting is for, of those that are not for the first of all; a round may come any time."""


def noisy_student(
    *,
    out: Path,
    data: str | None = None,
    labels: Path | None = None,
    fraction: float | None = None,
    backbone: str | None = None,
    student: str | None = None,
    rounds: int | None = None,
    ratio: int | None = None,
    threshold: float | None = None,
    per_class: int | None = None,
    temperature: float | None = None,
    hard: bool | None = None,
    magnitude: float | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    smoothing: float | None = None,
    average: float | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    optimiser: Optimiser | None = None,
    teacher_epochs: int | None = None,
    teacher_batch_size: int | None = None,
    teacher_lr: float | None = None,
    student_epochs: int | None = None,
    student_batch_size: int | None = None,
    student_lr: float | None = None,
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
    """From few labels and many images without to a classifier: teacher, student, student... (Noisy Student).

    Each stage is a run in a folder of its own, OUT/1-teacher, OUT/2-student, OUT/3-student and so on, and beside each
    student's lie its teacher's answers. The same call again, or one with --out alone, goes on where the first was
    stopped, also between two parts of the answers. At the end a table has each stage's accuracy on test images beside
    its teacher's; OUT/summary.json has the same.

    Args:
        out: the pipeline's folder.
        data: folder of images, list file, parquet, Hub or torchvision name, world. Default: world.
        labels: CSV of path,label, where no folders name the classes.
        fraction: share of each class's labels to use, 0.01 is 1 %; 1 where only few images have labels. The teachers
            answer for all other images. Default: 0.1.
        backbone: the teacher's: any timm model, small_cnn or tiny_cnn. Default: efficientnet_b0.
        student: the students' backbone, no smaller than the teacher's. Default: the teacher's.
        rounds: students, one after the other. Default: 3.
        ratio: unlabelled images to each labelled one in a batch. Default: 3, or 1 for EfficientNet-B0; up to 96 px 5.
        threshold: confidence below which an answer is left out. Default: 0.3.
        per_class: images of each class that a student is shown. Default: as many as there are to a class, at most
            130,000.
        temperature: softens a teacher's answers above 1. Default: 1.
        hard: learn the most likely class alone. Default: the answers as they are.
        magnitude: RandAugment's, 0 for none. Default: 27, less for small EfficientNets, 5 up to 96 px.
        dropout: before the classifier. Default: the EfficientNet's, else 0.5.
        drop_path: stochastic depth of the last block. Default: 0.2 where there are residual branches.
        smoothing: of labels and of hard answers. Default: 0.1.
        average: decay of the weights' moving average, which is kept. Default: 0.9999.
        image_size: pixels a side. Default: the data's own up to 96, else 224.
        channels: of the images. Default: 3.
        limit: use only so many images, a random subset by key.
        optimiser: paper, or adamw, which learns faster in trainings too short for the paper's. Default: paper.
        teacher_epochs: passes over the labelled images. Default: the paper's, as for all that follows.
        teacher_batch_size: labelled images per update over all devices.
        teacher_lr: peak learning rate, already scaled by the batch.
        student_epochs: passes over the labelled images, for each student.
        student_batch_size: labelled images per update; the unlabelled ones come on top.
        student_lr: peak learning rate.
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
            out, "noisy_student", plain, given, kinds=_LEARNING, defaults=DEFAULTS, later=LATER, overwrite=overwrite
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
    labelled = chain.check()
    stages = chain.stages(out)
    tell(f"{'begins' if overwrite or not (out / SETTINGS).exists() else 'goes on'} in {out}")
    begin(out, "noisy_student", chain.settings, overwrite=overwrite)
    again = "the same command without --overwrite" if overwrite else "the same command"
    ended = carry_out(out, stages, seconds=limit_s, again=again, say=tell)
    if say is not None and (out / SUMMARY).exists():
        kept, tested = len(chain.kept(labelled)), len(labelled.data.test)
        title = f"Noisy Student on {labelled.whole.name}: {len(labelled.whole):,} images, {kept:,} with labels"
        show_summary(out, f"{title}, {tested:,} test images")
    found = json.loads((out / SUMMARY).read_text(encoding="utf-8")) if (out / SUMMARY).exists() else {"stages": {}}
    return {**found, "ended": ended}


_EXECUTION = frozenset(
    "out device devices precision workers threads max_time save_minutes report overwrite say".split()
)
_LEARNING = {k: kind for k, kind in noisy_student.__annotations__.items() if k not in (*_EXECUTION, "return")}
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

    def hyper(self, *names: str) -> dict[str, Any]:
        """The recipe's own settings that were given or are ours."""
        return {name: self.settings[name] for name in names if self.settings[name] is not None}

    @property
    def first(self) -> dict[str, Any]:
        """The teacher's flags."""
        names = ("data", "labels", "backbone", "image_size", "channels", "limit")
        chosen = self.hyper(*names)
        if "labels" in chosen:
            chosen["labels"] = Path(chosen["labels"])
        return self.flags("teacher", **chosen)

    def kept(self, labels: Labels) -> Source:
        """The images whose labels are used."""
        return labels.kept(self.settings["fraction"], self.settings["seed"])

    def check(self) -> Labels:
        """Refuses before the first stage what a later one would refuse after hours."""
        how = self.settings
        if not 0 < how["fraction"] <= 1:
            raise UserError(f"--fraction is {how['fraction']}; it lies above 0, and 1 is all labels")
        if not 1 <= how["rounds"] <= 8:
            raise UserError(f"--rounds is {how['rounds']}; there are 1 to 8 students")
        for stage in ("teacher", "student"):
            with named_after(stage):
                Flags(**self.flags(stage)).check()
        flags = Flags(**self.first)
        flags.check()
        pick_precision(flags.precision, pick_device(flags.device))
        labels = open_labels(flags.data, flags, flags.image_size)
        whole, kept = labels.whole, len(self.kept(labels))
        if kept == len(whole):
            raise UserError(
                f"--fraction {how['fraction']} uses the labels of all {kept} images, so there is nothing for a teacher "
                "to answer; use a smaller one, or add images without labels"
            )
        for stage in ("teacher", "student"):
            batch = how[f"{stage}_batch_size"]
            if batch is not None and batch > kept:
                raise UserError(f"--{stage}-batch-size is {batch}, but there are {kept} labelled images; use fewer")
        sizes = [self.network(stage, labels) for stage in ("teacher", "student")]
        if sizes[1] < sizes[0]:
            raise UserError(
                f"the --student {how['student']} has {sizes[1]:,} weights and its teacher {sizes[0]:,}; a noisy "
                "student is no smaller (a smaller one learns by selfsight distill)"
            )
        return labels

    def network(self, stage: str, labels: Labels) -> int:
        """How many weights the stage's network has, once its recipe was seen to take the settings."""
        backbone = (stage == "student" and self.settings["student"]) or self.settings["backbone"]
        flags = Flags(**{**self.first, **self.flags(stage), **({"backbone": backbone} if backbone else {})})
        size = resolve_size(flags, labels.whole.native)
        share = flags.batch_size or usual_share(len(self.kept(labels)), size, flags)
        own = self.hyper(*NOISE, *(ANSWERS if stage == "student" else ()))
        with named_after(stage):
            parts = flags.devices * flags.accumulate
            if share % parts:
                raise UserError(f"--batch-size {share} does not divide into {flags.devices} devices")
            made: Assembly = assemble(
                "noisy_student",
                Flags(**{**vars(flags), "batch_size": share, "devices": 1}),
                {"teacher": NONE if stage == "teacher" else "any", **own},
                samples=len(labels.whole),
                native=labels.whole.native,
                classes=labels.data.classes,
                training=False,
            )
        encoder: nn.Module = made.encoder
        return sum(p.numel() for p in encoder.parameters())

    def stages(self, out: Path) -> list[Stage]:
        """Each stage with its folder's name, in their order."""
        how = self.settings
        chosen = {"fraction": how["fraction"], "label_seed": how["seed"], **self.hyper(*NOISE)}
        found = [self._stage("1-teacher", "learnt from labels alone", "teacher", NONE, {**self.first, **chosen})]
        own = self.hyper(*ANSWERS, *NOISE) | ({"backbone": how["student"]} if how["student"] else {})
        for k in range(how["rounds"]):
            what = "learnt from labels and from the teacher's answers"
            before = out / found[-1].name
            found.append(self._stage(f"{k + 2}-student", what, "student", before, {**self.flags("student"), **own}))
        return found

    def _stage(self, name: str, what: str, kind: str, argument: Path | str, own: Mapping[str, Any]) -> Stage:
        def run(folder: Path, begin: dict[str, Any]) -> Ending:
            with named_after(kind):
                options = {**own, "out": folder, **begin}
                return run_stage("noisy_student", argument, options, say=self.say, quiet=self.quiet)[1]

        def measured(folder: Path) -> object:
            where = {"device": self.execution["device"], "workers": self.execution["workers"]}
            return evaluate_classifier(open_run(folder), quiet=self.quiet, **where)

        return Stage(name=name, what=what, protocol=NAME, run=run, measure=measured)
