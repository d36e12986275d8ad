"""Pretraining from flags to a finished run: the Python face behind ``selfsight pretrain``."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from selfsight.data.loader import Loader
from selfsight.data.opening import open_data, open_splits
from selfsight.data.protocol import DataError, Source
from selfsight.data.splits import limited
from selfsight.encoders.backbone import Backbone
from selfsight.encoders.store import save_encoder
from selfsight.engine.launch import is_launched, launch
from selfsight.engine.loop import Ending, Execution, train
from selfsight.engine.machine import Machine, open_machine, pick_device
from selfsight.engine.run import (
    OpenRun,
    cache_folder,
    open_run,
    prepare_folder,
    read_settings,
    resumed_flags,
    versions,
    write_settings,
)
from selfsight.errors import TrainingError, UserError
from selfsight.evaluation.features import extract
from selfsight.evaluation.knn import knn_accuracy
from selfsight.flags import Flags, flags_from, seconds
from selfsight.method import Method
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import Assembly, assemble

PROBE_TRAIN, PROBE_TEST = 5000, 2000
"""Images of the online kNN probe: a keyed subset, so that a probe costs a small share of an epoch."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, all of it resolved."""

    flags: Flags
    source: Source
    assembly: Assembly
    folder: Path
    settings: Mapping[str, Any]
    machine: Machine
    say: Say
    quiet: bool


def pretrain(method: str, *, say: Say | None = None, **options: Any) -> OpenRun:
    """Pretrains a backbone and returns the finished run.

    Args:
        method: a recipe's name, see ``selfsight list``.
        say: where the run's messages go, ``print`` for instance; silent by default.
        options: every flag of ``selfsight.flags.Flags``, and the method's own hyper-parameters by name.

    Raises:
        UserError: a mistake of the call, in one line.
        TrainingError: a run that could not go on; its last checkpoint is kept.

    Example::

        run = selfsight.pretrain("simclr", data="images/", backbone="resnet50", epochs=100)
        encoder = selfsight.load(run.path)
    """
    own = catalogue.hyper_parameters(method)
    names = {f.name for f in fields(Flags)}
    unknown_or_own = {k: v for k, v in options.items() if k not in names}
    flags = flags_from({k: v for k, v in options.items() if k in names})
    for name in unknown_or_own:
        if name not in own:
            flags_from({name: None})  # raises, with the nearest name
    folder, _ = run_from_flags(method, flags, unknown_or_own, say=say or (lambda text: None), quiet=say is None)
    return open_run(folder)


def run_from_flags(
    method: str, flags: Flags, hyper: Mapping[str, Any], *, say: Say = print, quiet: bool = False
) -> tuple[Path, Ending]:
    """Carries out one run, in as many processes as it asks for; returns its folder and how it ended."""
    flags.check()
    catalogue.card(method)
    if pick_device(flags.device) == "cuda" and flags.devices > torch.cuda.device_count() and not is_launched():
        raise UserError(f"--devices is {flags.devices} but this machine has {torch.cuda.device_count()} GPUs")
    folder = flags.out or Path("runs") / "-".join(
        [method, Path(flags.data).name.replace(":", "") or "data", (flags.backbone or "default").replace("/", "_")]
    )
    hyper = dict(hyper)
    if flags.resume:
        flags, hyper = resumed_flags(method, flags, hyper, folder)
        flags = replace(flags, resume=True)
    source = _open_source(flags)
    begun = open_run(flags.init_from) if flags.init_from and not flags.resume else None
    start = begun.encoder().state_dict() if begun else None
    assembly = assemble(method, flags, hyper, samples=len(source), native=source.native, start=start)
    if begun:
        say(f"begins with {_begin_with_(assembly.recipe.method, begun, method)} of {begun.path}")
    settings = {
        "selfsight": versions()["selfsight"],
        "method": method,
        "flags": flags.plain(),
        "hyper": dict(hyper),
        "resolved": assembly.resolved,
        "data": {
            "name": source.name,
            "samples": len(source),
            "native": list(source.native) if source.native else None,
            "labels": source.labels is not None,
            "fingerprint": source.fingerprint,
        },
        "versions": versions(),
        "command": command(method, flags, hyper),
    }
    if flags.resume:
        _same_data(folder, settings)
    child = is_launched()
    if not flags.resume and not child:
        prepare_folder(folder, flags)
    if flags.devices > 1 and not child:
        launch(flags.devices, arguments(method, replace(flags, out=folder), hyper))
        return folder, "done" if (folder / "encoder.safetensors").exists() else "stopped"
    job = Job(
        flags=flags,
        source=source,
        assembly=assembly,
        folder=folder,
        settings=settings,
        machine=open_machine(flags),
        say=say,
        quiet=quiet,
    )
    if job.machine.first:
        _tell(job)
        write_settings(folder, {**settings, "machine": job.machine.describe()})
    ended = _train(job)
    if job.machine.first:
        _close(job, ended)
    return folder, ended


def _open_source(flags: Flags) -> Source:
    return open_data(
        flags.data,
        split="train",
        image_size=flags.image_size,
        limit=flags.limit,
        labels=flags.labels,
        seed=flags.seed,
        channels=flags.channels,
    )


def _train(job: Job) -> Ending:
    recipe, flags, machine = job.assembly.recipe, job.flags, job.machine
    encoder = job.assembly.encoder
    recipe.method.to(machine.device)
    if getattr(encoder, "channels_last", False):
        recipe.method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if flags.compile:
        for module in recipe.method.modules():
            if isinstance(module, Backbone):  # the encoder, and a target or a student beside it
                module.compile()
    loader = Loader(
        job.source,
        recipe.views,
        batch_size=recipe.batch_size,
        seed=flags.seed,
        rank=machine.rank,
        world=machine.world,
        accumulate=flags.accumulate,
        workers=flags.workers,
        cache_dir=cache_folder(),
        pin=machine.device.type == "cuda",
    )
    every = flags.probe_every if flags.probe_every is not None else max(recipe.epochs // 10, 1)
    execution = Execution(
        folder=job.folder,
        accumulate=flags.accumulate,
        max_seconds=seconds(flags.max_time),
        probe_every=every,
        save_seconds=60 * flags.save_minutes,
        log_every=flags.log_every,
        resume=flags.resume,
        loggers=flags.logger,
        settings=dict(job.settings),
        quiet=job.quiet,
    )
    probe = _probe(job) if job.source.labels is not None and every else None
    try:
        return train(recipe, loader, machine, execution, probe)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "t allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory at a batch of {recipe.batch_size}; --accumulate {2 * flags.accumulate} keeps the batch in "
            f"smaller pieces, --batch-size {recipe.batch_size // 2} halves it, --precision bf16 halves activations"
        ) from error


def _probe(job: Job) -> Callable[[], float] | None:
    """The online probe: weighted kNN (k=20, T=0.07) of a keyed subset of test on one of train."""
    flags, assembly = job.flags, job.assembly
    size = assembly.resolved["image_size"]
    try:
        pair = open_splits(flags.data, image_size=size, labels=flags.labels, seed=flags.seed, channels=flags.channels)
    except (DataError, UserError):
        return None  # labels, but no two classes to tell apart
    parts = [limited(source, n, seed=0) for source, n in zip(pair, (PROBE_TRAIN, PROBE_TEST), strict=True)]
    place = {"device": job.machine.device, "workers": flags.workers or 0, "cache_dir": cache_folder()}

    def score() -> float:
        plain = assembly.recipe.views.plain
        return float(knn_accuracy(*(extract(assembly.encoder, part, plain, **place) for part in parts)))

    return score


def _begin_with_(method: Method, begun: OpenRun, name: str) -> str:
    """Takes all of another run's weights where it is the same method; the encoder's are there already."""
    if begun.method == name and (begun.path / "checkpoints" / "last.pt").exists():
        state, mine = begun.recipe().method.state_dict(), method.state_dict()
        if state.keys() == mine.keys() and all(state[key].shape == mine[key].shape for key in mine):
            method.load_state_dict(state)
            return "all weights"
    return "the encoder"


def _same_data(folder: Path, settings: Mapping[str, Any]) -> None:
    before, now = read_settings(folder)["data"], settings["data"]
    if before["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"the data of {folder} has changed since the run began ({before['samples']} images then, {now['samples']} "
            "now, or other names); an exact resume is not possible: start anew with --init-from"
        )


def _tell(job: Job) -> None:
    resolved, machine = job.assembly.resolved, job.machine.describe()
    title = catalogue.card(job.settings["method"]).title
    job.say(f"{title} on {job.source.name}: {len(job.source):,} images at {resolved['image_size']} px")
    width = job.assembly.encoder.width
    job.say(f"backbone {resolved['backbone']} (features of {width}), batch {resolved['batch_size']}, "
            f"{resolved['epochs']} epochs")  # fmt: skip
    for name, words in resolved["optimisers"].items():
        settings = ", ".join(f"{k} {v}" for k, v in words.items() if k != "name")
        job.say(f"optimiser {name}: {words['name']}, {settings}")
    job.say(", ".join(f"{k} {v}" for k, v in machine.items()))
    if job.flags.resume:
        before = read_settings(job.folder).get("machine", {})
        changed = [f"{k} {before[k]} -> {machine[k]}" for k in machine if before.get(k, machine[k]) != machine[k]]
        exact = f"as exact as arithmetic allows, for {', '.join(changed)}" if changed else "exact"
        job.say(f"goes on in {job.folder} ({exact})")
    else:
        job.say(f"into {job.folder}")


def _close(job: Job, ended: Ending) -> None:
    folder, say = job.folder, job.say
    with (folder / "skipped.csv").open(encoding="utf-8") as lines:
        skipped = sum(1 for _ in lines) - 1
    if skipped:
        say(f"{skipped} of {len(job.source):,} images could not be read; {folder / 'skipped.csv'} names them")
    if ended != "done":
        why = "interrupted" if ended == "stopped" else f"--max-time {job.flags.max_time} is over"
        say(f"{why}: saved; go on with the same command and --resume")
        return
    save_encoder(job.assembly.encoder, folder, **encoder_facts(job.assembly, job.settings))
    say(f"done: {folder / 'encoder.safetensors'}")
    if job.flags.report:
        from selfsight.report.page import write_report  # noqa: PLC0415 - imports the plotting library

        say(f"report: {write_report(folder)}")


def encoder_facts(assembly: Assembly, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What encoder.json says beside the encoder's own facts."""
    normalise = getattr(assembly.recipe.views.plain, "normalise", None)
    return {
        "method": settings["method"],
        "normalise": {"mean": list(normalise[0]), "std": list(normalise[1])} if normalise else None,
        "data": settings["data"]["name"],
        "epochs": settings["resolved"]["epochs"],
        "selfsight": settings["selfsight"],
    }


def arguments(method: str, flags: Flags, hyper: Mapping[str, Any]) -> list[str]:
    """The command line that gives these flags."""
    standard = Flags()
    words = ["pretrain", method]
    given = {
        f.name: getattr(flags, f.name) for f in fields(Flags) if getattr(flags, f.name) != getattr(standard, f.name)
    }
    for name, value in {**given, **hyper}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            for part in value if isinstance(value, tuple | list) else [value]:
                words += [flag, str(part)]
    return words


def command(method: str, flags: Flags, hyper: Mapping[str, Any]) -> str:
    """The command to repeat the run."""
    again = replace(flags, resume=False, overwrite=False)
    return shlex.join(["selfsight", *arguments(method, again, hyper)])
