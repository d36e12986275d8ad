"""``selfsight finetune``, ``distill`` and ``noisy_student``, each a run; ``selfsight pipeline`` chains them."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from selfsight.cli_pretrain import general_parameters, own_parameters, sign_
from selfsight.recipes import catalogue

_HELP = {
    "finetune": (
        "Train a pretrained run on few labels, and say how good the classifier is.\n\n"
        "The first layer of the pretraining's head stays as a part of the encoder (SimCLR v2), and all weights are "
        "trained. The score on test images stands beside the same network trained from scratch on the same labels. "
        "`selfsight distill` goes on from here."
    ),
    "distill": (
        "Train a student on a fine-tuned run's answers for images without labels, and say how good it is.\n\n"
        "Without --backbone the student has the teacher's architecture and comes to do better than it; with a smaller "
        "one it is the model to hand over. The score on test images stands beside the teacher's, and beside the "
        "student's architecture trained from scratch on the labels alone."
    ),
    "noisy_student": (
        "Train a student under noise on labels and on a classifier's answers for the other images (Noisy Student).\n\n"
        "The teacher is any classifier's run; `none` trains the first one, from the labels alone. Its answers are made "
        "first, without noise, and kept beside the run. `selfsight pipeline noisy_student` does several rounds."
    ),
}
_FIRST = {
    "finetune": ("run", "The pretrained run's folder."),
    "distill": ("teacher", "The folder of a fine-tuned run, or of a student."),
    "noisy_student": ("teacher", "The folder of a classifier's run, or `none`."),
}
_WORDS = {
    "finetune": {
        "data": "Labelled images. Default: the pretraining's.",
        "labels": "CSV of path,label. Default: the pretraining's.",
        "limit": "Use only so many images, a random subset by key. Default: the pretraining's.",
        "out": "The run's folder. Default: RUN-finetune.",
    },
    "distill": {
        "data": "Images, which need no labels. Default: the teacher's.",
        "labels": "CSV of path,label. Default: the teacher's.",
        "limit": "Use only so many images, a random subset by key. Default: the teacher's.",
        "backbone": "The student's: any timm model, small_cnn or tiny_cnn. Default: the teacher's.",
        "out": "The run's folder. Default: TEACHER-distill.",
    },
    "noisy_student": {
        "data": "Images, of which some have labels. Default: the teacher's, or world.",
        "labels": "CSV of path,label. Default: the teacher's.",
        "limit": "Use only so many images, a random subset by key. Default: the teacher's.",
        "backbone": "The student's, no smaller than the teacher's. Default: the teacher's.",
        "epochs": "Passes over the labelled images. Default: the paper's.",
        "batch_size": "Labelled images per update over all devices. Default: the paper's.",
        "out": "The run's folder. Default: TEACHER-student.",
    },
}


def stage_command(name: str, words: Sequence[str]) -> Any:
    """A stage's command; its own flags are read, which imports torch, only where ``words`` call it."""
    card = catalogue.entry(name)
    title, text = _FIRST[name]
    hidden = {card.takes, *card.fixed}
    own = own_parameters(name, hidden) if words[:1] == [name] else []

    def stage(argument: Path, **options: Any) -> None:
        from selfsight.pipelines.stages import measure_stage, run_stage  # noqa: PLC0415

        folder, ended = run_stage(name, argument, options, say=partial(print, flush=True))
        if ended == "stopped":
            raise SystemExit(130)
        if ended == "done":
            measure_stage(folder, options)

    first = inspect.Parameter(
        title, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[Path, Parameter(help=text)]
    )
    sign_(stage, [first, *own, *general_parameters(hidden, **_WORDS[name])])
    stage.__doc__ = _HELP[name]
    return stage


def pipeline_app(words: Sequence[str]) -> App:
    """``selfsight pipeline NAME``; the pipelines are imported only where ``words`` call one."""
    app = App(
        name="pipeline",
        help="Several runs in a row, from unlabelled images and few labels to a classifier: `simclr_v2` pretrains, "
        "fine-tunes and distills, `noisy_student` trains one student after the other under noise. The same call again "
        "goes on where the first was stopped.",
    )
    if words[:1] == ["pipeline"]:
        from selfsight.pipelines.noisy_student import noisy_student  # noqa: PLC0415
        from selfsight.pipelines.simclr_v2 import simclr_v2  # noqa: PLC0415

        app.command(_spoken(simclr_v2), name="simclr_v2")
        app.command(_spoken(noisy_student), name="noisy_student")
    return app


def _spoken(pipeline: Callable[..., dict[str, Any]]) -> Any:
    """The command of a pipeline's function: it prints, and leaves with 130 where it was interrupted."""

    def command(**options: Any) -> None:
        if pipeline(**options, say=partial(print, flush=True))["ended"] == "stopped":
            raise SystemExit(130)

    sign_(command, [p for p in inspect.signature(pipeline).parameters.values() if p.name != "say"])
    before, _, after = (pipeline.__doc__ or "").partition("        say:")
    command.__doc__ = before + after.partition("\n\n")[1]
    return command
