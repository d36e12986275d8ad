"""Pretraining from flags to a finished run: the Python face behind ``selfsight pretrain``."""

import csv
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from selfsight.data.cache import cache_folder
from selfsight.data.loader import Loader
from selfsight.data.protocol import Source
from selfsight.data.splits import Chosen
from selfsight.data.workers import default_workers
from selfsight.encoders.backbone import Backbone
from selfsight.encoders.store import save_encoder
from selfsight.engine.journal import pick_loggers
from selfsight.engine.launch import PREPARED, is_launched, launch
from selfsight.engine.lock import alone
from selfsight.engine.loop import Ending, Execution, train
from selfsight.engine.machine import Machine, open_machine, pick_device, pick_precision
from selfsight.engine.pulse import together
from selfsight.engine.run import (
    OpenRun,
    clear,
    open_run,
    prepare_folder,
    read_settings,
    resumed_flags,
    versions,
    write_settings,
)
from selfsight.engine.start import Say, class_names, open_source, prepare, same_data
from selfsight.errors import TrainingError, UserError, unknown
from selfsight.evaluation.online import online_probe
from selfsight.flags import RUNS, Flags, arguments, command, flags_from, seconds
from selfsight.parts.batchnorm import scopes
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import Assembly, encoder_facts


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
    given = set(options)
    catalogue.card(method)
    own = catalogue.hyper_parameters(method)
    names = {f.name for f in fields(Flags)}
    unknown_or_own = {k: v for k, v in options.items() if k not in names}
    flags = flags_from({k: v for k, v in options.items() if k in names})
    for name in unknown_or_own:
        if name not in own:
            raise unknown("flag", name, names | set(own))
    tell = say or (lambda text: None)
    folder, _ = run_from_flags(method, flags, unknown_or_own, given=given, say=tell, quiet=say is None)
    return open_run(folder)


def run_from_flags(
    method: str,
    flags: Flags,
    hyper: Mapping[str, Any],
    *,
    given: Collection[str] = (),
    say: Say = print,
    quiet: bool = False,
) -> tuple[Path, Ending]:
    """Carries out one run, in as many processes as it asks for; returns its folder and how it ended.

    ``given`` names the flags that the call gives itself: a resumed run refuses those that would change it.
    """
    flags.check()
    catalogue.entry(method)
    kind = pick_device(flags.device)
    if kind == "cuda" and flags.devices > torch.cuda.device_count() and not is_launched():
        raise UserError(f"--devices is {flags.devices} but this machine has {torch.cuda.device_count()} GPUs")
    pick_precision(flags.precision, kind)
    pick_loggers(flags.logger)
    folder = flags.out or Path("runs") / "-".join(
        [method, _short(flags.data), (flags.backbone or "default").replace("/", "_")]
    )
    hyper = {name: os.path.abspath(value) if name in RUNS and value else value for name, value in hyper.items()}
    if flags.resume:
        flags, hyper = resumed_flags(method, flags, hyper, folder, given)
        flags = replace(flags, resume=True)
    else:
        not_into(folder, flags.init_from, *(hyper.get(name) for name in (*RUNS, "teacher")))
    source = open_source(flags)
    names = class_names(source)
    assembly = prepare(method, flags, hyper, source, folder, say=say)
    if assembly.recipe.images is not None:
        source = Chosen(source, assembly.recipe.images, name=source.name)
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
            **({"classes": names} if method in catalogue.stages() and "classes" not in hyper else {}),
            "fingerprint": source.fingerprint,
        },
        "versions": versions(),
        "command": command(method, flags, hyper),
    }
    if flags.resume:
        same_data(folder, settings)
    if flags.devices > 1 and not is_launched():
        with alone(folder):
            if not flags.resume:
                prepare_folder(folder, flags)
        ended: Ending = launch(flags.devices, arguments(method, replace(flags, out=folder), hyper))
        whole = (folder / "encoder.safetensors").exists()
        return folder, ended if whole or ended == "stopped" else "max-time"
    machine = open_machine(flags)
    with ExitStack() as held:
        _together(machine, folder, flags, source, held)
        job = Job(
            flags=flags,
            source=source,
            assembly=assembly,
            folder=folder,
            settings=settings,
            machine=machine,
            say=say if machine.first else (lambda text: None),
            quiet=quiet,
        )
        if job.machine.first:
            _tell(job)
            write_settings(folder, {**settings, "machine": job.machine.describe()})
        ended = _train(job)
        if job.machine.first:
            _close(job, ended)
    return folder, ended


def not_into(folder: Path, *begun: Path | str | None) -> None:
    """Refuses the folder of a run that a new one goes on from: it would be deleted before it is read, or lost after."""
    for run in begun:
        if run and str(run) != "none" and os.path.realpath(run) == os.path.realpath(folder):
            raise UserError(f"--out {folder} is the run that this one goes on from, which would be lost; give another")


def _short(data: object) -> str:
    """The data in a word, for the name of a folder."""
    name = Path(data).name if isinstance(data, str | Path) else type(data).__name__
    return name.replace(":", "") or "data"


def _together(machine: Machine, folder: Path, flags: Flags, source: Source, held: ExitStack) -> None:
    """Makes the folder, if nobody has, and sees that all processes have the same data before any waits for another.

    From now on the first process has the folder to itself, until ``held`` ends.
    """
    wrong = ""
    if machine.first:
        try:
            held.enter_context(alone(folder))
            if flags.resume:
                clear(folder)
            elif PREPARED not in os.environ:
                prepare_folder(folder, flags)
        except UserError as error:
            wrong = str(error)
    if machine.world > 1:
        seen: list[tuple[str, str, int]] = [("", "", 0)] * machine.world
        dist.all_gather_object(seen, (wrong, source.fingerprint, len(source)))
        wrong = seen[0][0]
        if not wrong and len(set(seen)) > 1:
            sizes = ", ".join(f"{n:,} images" for _, _, n in seen)
            wrong = f"the processes do not see the same data in {flags.data} ({sizes}); copy it anew"
    if wrong:
        raise UserError(wrong)


def settle(assembly: Assembly, machine: Machine, *, compiled: bool = False) -> None:
    """Brings the method to the machine's device, in the memory format its encoder is quickest in.

    ``compiled``: every backbone is compiled, the encoder and a target or a student beside it.
    """
    method = assembly.recipe.method
    method.to(machine.device)
    if getattr(assembly.encoder, "channels_last", False):
        method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in method.modules() if compiled else ():
        if isinstance(module, Backbone):
            module.compile()


def _train(job: Job) -> Ending:
    recipe, flags, machine = job.assembly.recipe, job.flags, job.machine
    encoder = job.assembly.encoder
    settle(job.assembly, machine, compiled=flags.compile)
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
        order=recipe.order,
    )
    often = 0 if job.settings["method"] in catalogue.stages() else max(recipe.epochs // 10, 1)
    every = flags.probe_every if flags.probe_every is not None else often
    execution = Execution(
        folder=job.folder,
        accumulate=flags.accumulate,
        max_seconds=seconds(flags.max_time),
        probe_every=every,
        save_seconds=60 * flags.save_minutes,
        log_every=flags.log_every,
        resume=flags.resume,
        loggers=pick_loggers(flags.logger),
        settings=dict(job.settings),
        quiet=job.quiet,
    )
    probe = None
    if job.source.labels is not None and every:
        workers = default_workers(machine.world) if flags.workers is None else flags.workers
        probe = online_probe(encoder, recipe.views.plain, job.source, device=machine.device, workers=workers)
    try:
        with together(machine):
            return train(recipe, loader, machine, execution, probe)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "t allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory at a batch of {recipe.batch_size}; --accumulate {2 * flags.accumulate} keeps the batch in "
            f"smaller pieces, --batch-size {recipe.batch_size // 2} halves it, --precision bf16 halves activations"
        ) from error


def _tell(job: Job) -> None:
    resolved, machine = job.assembly.resolved, job.machine.describe()
    title = catalogue.entry(job.settings["method"]).title
    job.say(f"{title} on {job.source.name}: {len(job.source):,} images at {resolved['image_size']} px")
    if job.source.labels is not None and job.settings["method"] not in catalogue.stages():
        job.say(f"labels ({len(job.source.classes)} classes) are for the online probe alone; where the data have no "
                "test split, a fifth of each class is held back for evaluation")  # fmt: skip
    width = job.assembly.encoder.width
    job.say(f"backbone {resolved['backbone']} (features of {width}), batch {resolved['batch_size']}, "
            f"{resolved['epochs']} epochs")  # fmt: skip
    for note in job.assembly.notes:
        job.say(note)
    for name, words in resolved["optimisers"].items():
        settings = ", ".join(f"{k} {v}" for k, v in words.items() if k != "name")
        job.say(f"optimiser {name}: {words['name']}, {settings}")
    job.say(", ".join(f"{k} {v}" for k, v in machine.items()))
    if job.flags.resume:
        job.say(f"goes on in {job.folder} ({_how_exact(job, read_settings(job.folder), machine)})")
    else:
        job.say(f"into {job.folder}")


def _how_exact(job: Job, before: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """What a run that goes on has in common with the one that was never stopped."""

    def changes(name: str, now: Mapping[str, Any]) -> list[str]:
        was = before.get(name)
        was = was if isinstance(was, dict) else {}  # a file that a stranger wrote
        return [f"{k} {was[k]} -> {now[k]}" for k in now if was.get(k, now[k]) != now[k]]

    here, programs = changes("machine", machine), changes("versions", job.settings["versions"])
    what = ", ".join(here + programs)
    if any(change.startswith("processes ") for change in here) and "rank" in scopes(job.assembly.recipe.method):
        return f"not as the run was begun: each process's batch norm sees its own part of a batch, for {what}"
    if programs:
        return f"as exact as other versions allow, for {what}"
    return f"as exact as arithmetic allows, for {what}" if here else "exact"


def _close(job: Job, ended: Ending) -> None:
    folder, say = job.folder, job.say
    with (folder / "skipped.csv").open(newline="", encoding="utf-8") as lines:
        skipped = sum(1 for _ in csv.reader(lines)) - 1  # a name may hold ends of lines
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
