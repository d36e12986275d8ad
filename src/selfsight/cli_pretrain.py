"""``selfsight pretrain``: the command whose flags depend on the method."""

import inspect
from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from selfsight.errors import UserError
from selfsight.flags import Flags, arguments
from selfsight.recipes import catalogue

OWN, RUN = Group("The method's own", sort_key=1), Group("The run", sort_key=2)


def pretrain_command(words: Sequence[str]) -> Any:
    """``pretrain`` with the flags of the method that the words name, if they name one."""
    named = next((word for word in words[1:] if word in catalogue.cards()), None) if words[:1] == ["pretrain"] else None
    own = own_parameters(named) if named else []

    def pretrain(method: str, **options: Any) -> None:
        from selfsight.pretraining import run_from_flags  # noqa: PLC0415

        mine = {p.name for p in own}
        catalogue.card(method)
        hyper = {k: v for k, v in options.items() if k in mine and v is not None}
        flags = Flags(**{k: v for k, v in options.items() if k not in mine})
        say = partial(print, flush=True)
        _, ended = run_from_flags(method, flags, hyper, given=options.keys(), say=say)
        if ended == "stopped":
            raise SystemExit(130)

    first = inspect.Parameter(
        "method",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=Annotated[str, Parameter(help="A name from `selfsight list`.")],
    )
    sign_(pretrain, [first, *own, *general_parameters()])
    pretrain.__doc__ = (
        "Pretrain a backbone on images without labels.\n\n"
        "`selfsight pretrain METHOD --help` shows the method's own flags too; "
        "`selfsight pretrain --from RUN/run.yaml` repeats a run, with the flags given beside it put over its own."
    )
    return pretrain


def sign_(function: Any, parameters: list[inspect.Parameter]) -> None:
    """Gives a function that takes any options the signature that help and parsing go by."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def general_parameters(without: Collection[str] = (), **words: str) -> list[inspect.Parameter]:
    """The flags of every run, but those ``without``; ``words`` replaces the help of some, whose default is None."""
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if f.default is MISSING or f.name in words else f.default,
            annotation=Annotated[
                (str | None if f.name in words else str) if f.name == "data" else f.type,
                Parameter(help=words.get(f.name, f.metadata["help"]), group=RUN),
            ],
        )
        for f in fields(Flags)
        if f.name not in without
    ]


def own_parameters(method: str, without: Collection[str] = ()) -> list[inspect.Parameter]:
    """The keyword parameters of a recipe as flags."""
    import docstring_parser  # noqa: PLC0415

    parsed = docstring_parser.parse(catalogue.recipe_function(method).__doc__ or "")
    described = {p.arg_name: p.description for p in parsed.params}
    return [
        p.replace(annotation=Annotated[p.annotation, Parameter(help=described.get(name, ""), group=OWN)])
        for name, p in catalogue.hyper_parameters(method).items()
        if name not in without
    ]


def from_file(words: list[str]) -> list[str]:
    """``pretrain --from RUN.yaml`` is the command that the file repeats, with the flags given here put over it."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--from=") else [word])]
    if words[:1] != ["pretrain"] or "--from" not in words:
        return words
    at = words.index("--from")
    if at + 1 == len(words):
        raise UserError("--from needs the run.yaml to repeat")
    from selfsight.engine.run import read_settings  # noqa: PLC0415
    from selfsight.engine.stored import check_hyper, stored_flags  # noqa: PLC0415

    path, rest = Path(words[at + 1]), [*words[1:at], *words[at + 2 :]]
    settings = read_settings(path)
    if settings.get("imported"):
        raise UserError(f"{path} is of an imported checkpoint, no training; to begin with its weights use --init-from")
    # which folder, and what becomes of a run in it, is for this call to say
    flags = replace(stored_flags(settings["flags"], path), out=None, resume=False, overwrite=False)
    flags.check()
    hyper = settings.get("hyper", {})
    check_hyper(settings["method"], hyper, path)
    again = arguments(settings["method"], flags, hyper)
    given = {word.split("=")[0] for word in rest if word.startswith("--")}
    kept = [again[0], again[1]]
    for i, word in enumerate(again[2:], start=2):
        owner = word.split("=")[0] if word.startswith("--") else again[i - 1]
        if owner not in given:
            kept.append(word)
    return [*kept, *rest]
