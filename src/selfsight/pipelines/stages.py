"""The stages that follow a pretraining or another stage, each a run of its own: fine-tuning on few labels, distillation
without any, and self-training on both."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfsight.engine.launch import PREPARED
from selfsight.engine.loop import Ending
from selfsight.engine.run import OpenRun, open_run, read_settings
from selfsight.engine.start import Say, class_names
from selfsight.errors import UserError, unknown
from selfsight.evaluation.answers import write_answers
from selfsight.evaluation.classifier import evaluate_classifier, open_labels, tuned_run
from selfsight.evaluation.finetune import labelled_fraction
from selfsight.flags import OBJECT, Flags, flags_from, seconds
from selfsight.pretraining import not_into, run_from_flags
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import UPDATES, resolve_size, usual_encoder
from selfsight.recipes.noisy_student import NONE
from selfsight.sizes import SMALL


def finetune(run: Path | str, *, say: Say | None = None, **options: Any) -> OpenRun:
    """Fine-tunes a pretrained run on a fraction of the labels, and measures the classifier that comes of it.

    Args:
        run: the pretrained run's folder.
        say: where messages and the table go, ``print`` for instance; silent by default.
        options: ``fraction`` of the labels, ``head_layers`` that stay, ``label_seed``; ``data`` and ``labels`` (the
            run's own by default); ``epochs``, ``batch_size``, ``lr``, ``out``, ``resume`` and other flags of a run.

    Raises:
        UserError: a mistake of the call, in one line.

    Example::

        run = selfsight.pretrain("simclr_v2", data="images/")
        tuned = selfsight.finetune(run.path, labels="few.csv")
        classifier = selfsight.load_classifier(tuned.path)
    """
    return _called("finetune", run, say, options)


def distill(teacher: Path | str, *, say: Say | None = None, **options: Any) -> OpenRun:
    """Trains a student on a fine-tuned run's answers for images without labels, and measures it.

    Args:
        teacher: the folder of a fine-tuned run, or of a student.
        say: where messages and the table go; silent by default.
        options: ``backbone`` of the student (the teacher's by default), ``temperature``, ``label_weight``; ``data``
            (the teacher's own by default), ``init_from`` a run whose weights to begin with, and other flags of a run.
    """
    return _called("distill", teacher, say, options)


def noisy_student(teacher: Path | str = NONE, *, say: Say | None = None, **options: Any) -> OpenRun:
    """Trains a student under noise on labels and on a classifier's answers for the other images, and measures it.

    Args:
        teacher: the folder of any classifier's run; "none" for the first teacher, which learns from labels alone.
        say: where messages and the table go; silent by default.
        options: of the recipe, ``ratio``, ``threshold``, ``magnitude``...; ``backbone`` (the teacher's by default),
            without a teacher also ``data``, ``labels``, ``fraction``; and other flags of a run.
    """
    return _called("noisy_student", teacher, say, options)


def _called(name: str, argument: Path | str, say: Say | None, options: Mapping[str, Any]) -> OpenRun:
    folder, ended = run_stage(name, argument, options, say=say or (lambda text: None), quiet=say is None)
    if ended == "done":
        measure_stage(folder, options, quiet=say is None)
    return open_run(folder)


def run_stage(
    name: str, argument: Path | str, options: Mapping[str, Any], *, say: Say = print, quiet: bool = False
) -> tuple[Path, Ending]:
    """Carries out one stage; returns its folder and how it ended. ``options`` are the flags that the call gives."""
    card = catalogue.entry(name)
    common = {f.name for f in fields(Flags)} - {card.takes, *card.fixed}
    own = catalogue.hyper_parameters(name).keys() - {card.takes, *card.fixed}
    for option in options:
        if option not in common | own:
            raise unknown(f"flag of {name}", option, common | own)
    if name == "noisy_student":
        return _self_train(argument, options, common=common, own=own, say=say, quiet=quiet)
    begun = open_run(argument)
    if begun.imported:
        raise UserError(
            f"{begun.path} was imported: it has no head to go on with; selfsight evaluate --protocol finetune tunes it"
        )
    _say_if_unfinished(begun, options, say)
    flags, hyper = _FOLLOWS[name](begun, options)
    hyper |= {k: v for k, v in options.items() if k in own}
    flags = flags_from(flags | {k: v for k, v in options.items() if k in common})
    flags = replace(flags, out=flags.out or Path(f"{begun.path}-{name}"))
    flags.check()
    tuned = None if name == "finetune" else tuned_run(begun)
    tested = flags if tuned is None else tuned.flags
    if tuned is not None and hyper.get("label_weight"):
        _same_images(flags, tuned)
    if not str(tested.data).startswith(OBJECT):  # what it is measured on at the end: refused now where it is not there
        open_labels(tested.data, tested, begun.image_size)
    return run_from_flags(name, flags, hyper, given=options.keys(), say=say, quiet=quiet)


def _say_if_unfinished(begun: OpenRun, options: Mapping[str, Any], say: Say) -> None:
    if not begun.finished and not options.get("resume") and PREPARED not in os.environ:
        say(f"{begun.path} has not come to its end: its last checkpoint is taken")


def _self_train(
    argument: Path | str,
    options: Mapping[str, Any],
    *,
    common: Collection[str],
    own: Collection[str],
    say: Say,
    quiet: bool,
) -> tuple[Path, Ending]:
    """One round of Noisy Student: the teacher, if there is one, answers before its student begins."""
    begun = None if str(argument) == NONE else open_run(argument)
    told: dict[str, Any] = {}
    hyper: dict[str, Any] = {"teacher": NONE}
    if begun is not None:
        told, hyper = _after_classifier(begun, options)
        _say_if_unfinished(begun, options, say)
    hyper |= {k: v for k, v in options.items() if k in own and v is not None}
    flags = flags_from(told | {k: v for k, v in options.items() if k in common})
    flags = replace(flags, out=flags.out or Path("runs/noisy_student" if begun is None else f"{begun.path}-student"))
    flags.check()
    if begun is not None and not flags.resume:
        not_into(cast(Path, flags.out), begun.path)  # before it answers
    begin, own_labels = flags, hyper
    if flags.resume and begun is None:  # its images are the run's, which a call that goes on need not name
        begin = open_run(cast(Path, flags.out)).flags
        own_labels = read_settings(cast(Path, flags.out)).get("hyper", {})
    labels = open_labels(begin.data, begin, begin.image_size)
    fraction, seed = own_labels.get("fraction") or 1.0, own_labels.get("label_seed") or 0
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction is {fraction:g}; it lies above 0, and 1 is all labels")
    known = labelled_fraction(np.asarray(labels.whole.labels), fraction, seed=seed)
    if flags.batch_size is None and not flags.resume:
        flags = replace(flags, batch_size=usual_share(len(known), resolve_size(flags, labels.whole.native), flags))
    if begun is not None:
        if class_names(labels.whole) != list(begun.classes):
            raise UserError(f"{begun.path} tells other classes apart than the labels of {labels.whole.name} name")
        folder = Path(f"{flags.out}-answers")
        hyper["answers"] = str(folder.resolve())
        others = np.setdiff1d(np.arange(len(labels.whole)), known)
        if not len(others):
            raise UserError("every image has a label that is used, so there is nothing for the teacher to answer; "
                            "add images without labels, or use a smaller --fraction")  # fmt: skip
        if PREPARED not in os.environ:
            left, start = seconds(flags.max_time), time.monotonic()
            how: dict[str, Any] = {"device": flags.device, "workers": flags.workers, "seconds": left}
            ended = write_answers(begun, labels.whole, others, folder, say=say, **how)
            if left is not None:
                flags = replace(flags, max_time=f"{max(left - (time.monotonic() - start), 0.01):.2f}s")
            if ended != "done":
                say(f"stopped while {begun.path} answered; the same command goes on from there")
                return cast(Path, flags.out), ended
    return run_from_flags("noisy_student", flags, hyper, given=options.keys(), say=say, quiet=quiet)


def usual_share(labelled: int, image_size: int, flags: Flags) -> int:
    """Labelled images of a batch: the paper's, or fewer where an epoch would be less than eight updates."""
    parts = flags.devices * flags.accumulate
    usual = 128 if image_size <= SMALL else 2048
    fits = 1 << max(labelled // UPDATES, 1).bit_length() - 1
    return max(min(usual, fits) // parts, 1) * parts


def measure_stage(folder: Path, options: Mapping[str, Any], *, quiet: bool = False) -> dict[str, dict[str, Any]]:
    """Scores the stage's classifier beside its baselines; the children of ``--devices`` leave that to their parent."""
    if PREPARED in os.environ:
        return {}
    run = open_run(folder)
    own = options.get("data")
    data = None if isinstance(own, str | Path) else own
    where = {"device": options.get("device", "auto"), "workers": options.get("workers")}
    return evaluate_classifier(run, data=data, quiet=quiet, **where)


def _after_pretraining(begun: OpenRun, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What follows from the pretrained run: its encoder, its images unless others are given, its head and view."""
    if begun.method in catalogue.stages():
        raise UserError(f"{begun.path} is fine-tuned already; give the pretrained run that it began with")
    resolved, before = begun.settings["resolved"], begun.flags
    flags = {
        **_images(begun, options),
        "init_from": begun.path,
        "image_size": begun.image_size,
        "channels": before.channels,
        "backbone": before.backbone,
        "patch_size": before.patch_size,
    }
    pretext = {
        "method": begun.method,
        "hyper": dict(begun.settings.get("hyper", {})),
        "epochs": resolved["epochs"],
        "batch_size": resolved["batch_size"],
        "view": facts_of(begun.assembly.recipe.views.plain),
    }
    return flags, {"pretext": pretext}


def facts_of(plain: Any) -> dict[str, Any]:
    """An evaluation view as run.yaml has it: a student of any architecture sees images as its teacher does."""
    return {
        "size": plain.size,
        "interpolation": plain.interpolation,
        "normalise": plain.normalise and [list(numbers) for numbers in plain.normalise],
        "grey": plain.grey,
        **({"greyscale": plain.greyscale} if plain.greyscale != "luma" else {}),
    }


def _after_finetuning(begun: OpenRun, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What follows from the teacher: its images unless others are given, its view, its backbone unless another is."""
    tuned = tuned_run(begun)
    same = options.get("backbone") is None
    resolved = begun.settings["resolved"]
    theirs = resolved.get("backbone")  # by the run that it was begun from, if neither of these
    usual = usual_encoder(begun.method, begun.settings.get("hyper") or {}, begun.image_size).backbone
    patch = None if theirs == usual else (resolved.get("backbone_options") or {}).get("patch_size")
    flags = {
        **_images(tuned, options),
        "image_size": begun.image_size,
        "channels": begun.flags.channels,
        "backbone": begun.flags.backbone or (None if theirs == usual else theirs),
        "patch_size": (begun.flags.patch_size or patch) if same else None,
    }
    before = tuned.settings["hyper"]
    hyper = {
        "teacher": str(begun.path.resolve()),
        "classes": list(begun.classes),
        "fraction": before.get("fraction", 1.0),
        "label_seed": before.get("label_seed", 0),
        "pretext": before["pretext"],
    }
    return flags, hyper


def _after_classifier(begun: OpenRun, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What follows from a teacher: its images and labels, its size, its backbone unless another is given."""
    root = tuned_run(begun)
    said = {**root.settings["flags"], "fraction": 1.0, "label_seed": 0, **root.settings["hyper"]}
    chosen = ("limit", "seed") if root.flags.limit else ("limit",)  # the seed says which images a limit leaves
    for name in ("data", "labels", *chosen, "fraction", "label_seed", "channels"):
        if options.get(name) is not None and PREPARED not in os.environ and str(options[name]) != str(said.get(name)):
            raise UserError(f"--{name.replace('_', '-')} follows from the teacher, which learnt with other labels; "
                            "leave it out")  # fmt: skip
    same = options.get("backbone") is None
    flags = {
        **_images(root, {}),
        "image_size": begun.image_size,
        "channels": root.flags.channels,
        "backbone": begun.settings["resolved"]["backbone"],
        "patch_size": begun.flags.patch_size if same else None,
    }
    before = root.settings["hyper"]
    hyper = {
        "teacher": str(begun.path.resolve()),
        "fraction": before.get("fraction") or 1.0,
        "label_seed": before.get("label_seed") or 0,
    }
    return flags, hyper


def _same_images(flags: Flags, tuned: OpenRun) -> None:
    now, before = flags.plain(), tuned.settings["flags"]
    chosen = ("limit", "seed") if flags.limit else ("limit",)  # the seed says which images a limit leaves
    if any(now[name] != before.get(name) for name in ("data", "labels", *chosen)):
        raise UserError(
            "--label-weight learns the teacher's labels beside its answers, which belong to its own images; "
            f"leave out --data, --labels, {' and '.join(f'--{name}' for name in chosen)}, or --label-weight"
        )


_Follow = Callable[[OpenRun, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
_FOLLOWS: dict[str, _Follow] = {"finetune": _after_pretraining, "distill": _after_finetuning}


def _images(begun: OpenRun, options: Mapping[str, Any]) -> dict[str, Any]:
    """The images of ``begun``, where the call gives no others; the seed says which a limit leaves of them."""
    if options.get("data") is not None:
        return {}
    return {name: getattr(begun.flags, name) for name in ("labels", "limit", "seed")} | {"data": begun.data()}
