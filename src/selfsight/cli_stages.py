"""``selfsight finetune`` and ``selfsight distill``, each a run of its own; ``selfsight pipeline`` chains them."""

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
}
_FIRST = {
    "finetune": ("run", "The pretrained run's folder."),
    "distill": ("teacher", "The folder of a fine-tuned run, or of a student."),
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
        help="Several runs in a row, from unlabelled images to a classifier: `simclr_v2` pretrains, fine-tunes on few "
        "labels and distills. The same call again goes on where the first was stopped.",
    )
    if words[:1] == ["pipeline"]:
        from selfsight.pipelines.simclr_v2 import simclr_v2  # noqa: PLC0415

        app.command(_spoken(simclr_v2), name="simclr_v2")
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
