"""The command line. Heavy imports stand inside the commands: ``selfsight list`` needs no torch."""

import errno
import inspect
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from selfsight.cli_pretrain import from_file, pretrain_command
from selfsight.cli_stages import pipeline_app, stage_command
from selfsight.errors import ToldElsewhere, TrainingError, UserError, unknown
from selfsight.flags import Flags
from selfsight.importing.layouts import Activation, Name, Pool, Scale, Which
from selfsight.recipes import catalogue


def main(words: Sequence[str] | None = None) -> None:
    """Runs one command: exit code 0 done, 1 a run that could not go on, 2 a mistake of the call, 130 interrupted."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may be no text, as stderr takes it already
    try:
        words = from_file(words)
        _app(words)(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _leave(_one_line(error), 2, debug)
    except KeyboardInterrupt:
        _leave("interrupted", 130, debug)
    except ToldElsewhere:
        raise SystemExit(1) from None
    except TrainingError as error:
        _leave(str(error), 1, debug)
    except (UserError, *_data_errors()) as error:
        _leave(str(error), 2, debug)
    except OSError as error:
        full = _once_there_is_room(words) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        _leave(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{full}", 2, debug)


def _app(words: Sequence[str]) -> App:
    app = App(
        name="selfsight",
        help="Self-supervised learning of vision: pretrain on unlabelled images, evaluate, embed, export.",
        version_flags=["--version"],
        default_parameter=Parameter(negative_iterable=(), negative_none=(), allow_repeating=True),
    )
    app.command(pretrain_command(words), name="pretrain")
    for name in catalogue.stages():
        app.command(stage_command(name, words), name=name)
    app.command(pipeline_app(words))
    app.command(list_, name="list")
    for command in (show, evaluate, embed, analyse, export, views, report, bench, demo):
        app.command(command)
    app.command(import_, name="import")
    return app


def _once_there_is_room(words: Sequence[str]) -> str:
    """How a call that met a full disk goes on."""
    if words[:1] == ["pipeline"]:
        return f"; free space, then the same command{' without --overwrite' if '--overwrite' in words else ''}"
    return "; free space, then --resume" if words and words[0] in ("pretrain", *catalogue.stages()) else ""


def _data_errors() -> tuple[type[Exception], ...]:
    from selfsight.data.protocol import DataError  # noqa: PLC0415 - looked up when an error is at hand

    return (DataError,)


def _leave(message: str, code: int, debug: bool) -> None:
    print(f"selfsight: {_printable(message)}", file=sys.stderr)
    if debug:
        raise  # noqa: PLE0704 - called from an except clause
    raise SystemExit(code)


def _printable(message: str) -> str:
    """The message in one line: names of files may hold ends of lines and a terminal's commands."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def list_() -> None:
    """The methods: name, year, family, and a line on each."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    table = Table("method", "year", "family", "what it does", box=None, pad_edge=False)
    for card in catalogue.listed().values():
        table.add_row(card.name, str(card.year), card.family, card.fact)
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def show(method: str, *, image_size: int = 224, samples: int = 1_281_167) -> None:
    """What a method is, its flags, and what it resolves to at an image size."""
    import docstring_parser  # noqa: PLC0415

    from selfsight.recipes.assembly import assemble  # noqa: PLC0415

    card = catalogue.card(method)
    flags = Flags(image_size=image_size)
    flags.check()
    if samples < 1:
        raise UserError(f"--samples is {samples}; it must be at least 1")
    print(f"{card.title} ({card.year}" + (f", arXiv {card.arxiv}" if card.arxiv else "") + f"): {card.fact}\n")
    function = catalogue.recipe_function(method)
    print(inspect.cleandoc(function.__doc__ or "") + "\n")
    parsed = docstring_parser.parse(function.__doc__ or "")
    described = {p.arg_name: p.description for p in parsed.params}
    for name, parameter in catalogue.hyper_parameters(method).items():
        print(f"  --{name.replace('_', '-')} (default {parameter.default}): {described.get(name) or ''}")
    print(f"\nAt {image_size} px it resolves to:")
    made = assemble(method, flags, {}, samples=samples, native=None, training=False)
    import yaml  # noqa: PLC0415

    print(yaml.safe_dump(made.resolved, sort_keys=False, allow_unicode=True))


def evaluate(
    run: Path,
    *,
    data: str | None = None,
    protocol: str = "knn,linear",
    limit: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
    which: Literal["last", "best"] = "last",
    head_layers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    smoothing: float | None = None,
    drop_path: float | None = None,
    labels: Path | None = None,
    seed: int = 0,
) -> None:
    """How good a run's features are, beside raw pixels and the same encoder at random initialisation.

    Args:
        run: the run's folder.
        data: labelled images. Default: the run's own.
        protocol: of knn, linear, linear-sgd, attentive, layerwise, finetune, quality, pretext;
            several with commas.
        limit: use only so many images of each split, by key.
        k: neighbours that vote in knn.
        temperature: of their votes.
        which: the last weights, or the checkpoint with the best online probe.
        head_layers: so many layers of the run's head count as part of the encoder; SimCLR v2 fine-tunes with 1.
        device: where to compute.
        workers: processes that decode large images. Default: by the machine.
        epochs: length of the protocols that train. Default: the papers'.
        batch_size: images of an update there. Default: the papers'.
        lr: peak rate there, before it is scaled by the batch where the paper does so. Default: the papers'.
        layer_decay: of finetune, each layer's rate as a share of the next one's. Default: 0.65 for transformers.
        mixup: of finetune, 0 for none. Default: 0.8 for transformers on all labels.
        cutmix: likewise. Default: 1.0 there.
        smoothing: likewise, of labels. Default: 0.1 there.
        drop_path: likewise, of the last block. Default: 0.1 there.
        labels: CSV of path,label.
        seed: seed of subsets and of the random encoder.
    """
    from selfsight.engine.machine import pick_device  # noqa: PLC0415
    from selfsight.evaluation.evaluate import evaluate as evaluate_  # noqa: PLC0415

    evaluate_(
        run,
        data=data,
        protocols=tuple(part.strip() for part in protocol.split(",")),
        limit=limit,
        k=k,
        temperature=temperature,
        which=which,
        head_layers=head_layers,
        device=pick_device(device),
        workers=workers,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        layer_decay=layer_decay,
        mixup=mixup,
        cutmix=cutmix,
        smoothing=smoothing,
        drop_path=drop_path,
        labels=labels,
        seed=seed,
    )


def embed(
    run: Path,
    *,
    data: str | None = None,
    out: Path = Path("features.parquet"),
    kind: Literal["pooled", "patches"] = "pooled",
    limit: int | None = None,
    which: Literal["last", "best"] = "last",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int | None = None,
) -> None:
    """Writes the features of images to a parquet or npy file.

    Args:
        run: the run's folder.
        data: the images. Default: the run's own.
        out: file to write, .parquet or .npy.
        kind: one vector an image, or one a patch.
        limit: only so many images, by key.
        which: the last weights, or the checkpoint with the best online probe.
        device: where to compute.
        workers: processes that decode large images. Default: by the machine.
    """
    from selfsight.engine.machine import pick_device  # noqa: PLC0415
    from selfsight.evaluation.embed import embed as embed_  # noqa: PLC0415

    where = {"device": pick_device(device), "workers": workers}
    print(embed_(run, data=data, out=out, kind=kind, limit=limit, which=which, **where))


def analyse(
    *runs: str,
    data: str | None = None,
    limit: int = 1000,
    out: Path | None = None,
    pictures: int = 8,
    image_size: int = 224,
    pretrained: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int | None = None,
    labels: Path | None = None,
    seed: int = 0,
) -> None:
    """What an encoder attends to and how its layers differ: tables, pictures and a page.

    Args:
        runs: a run's folder, or two to see side by side; `timm:NAME` is a model of timm.
        data: the images, of which the test part is looked at. Default: the first run's own.
        limit: only so many images, by key.
        out: the folder to write. Default: `analysis` in the first run.
        pictures: images in each picture.
        image_size: of a model of timm.
        pretrained: a model of timm with its published weights.
        device: where to compute.
        workers: processes that decode large images. Default: by the machine.
        labels: CSV of path,label, where the data's split depends on it.
        seed: seed of the subset.
    """
    from selfsight.analysis.analyse import analyse as analyse_  # noqa: PLC0415
    from selfsight.analysis.analyse import summary  # noqa: PLC0415
    from selfsight.engine.machine import pick_device  # noqa: PLC0415

    found = analyse_(
        runs,
        data=data,
        limit=limit,
        out=out,
        pictures=pictures,
        image_size=image_size,
        pretrained=pretrained,
        device=pick_device(device),
        workers=workers,
        labels=labels,
        seed=seed,
    )
    for line in summary(found):
        print(line)
    print(found.out / "analysis.html")


def export(
    run: Path,
    *,
    format: Literal["timm", "torchvision", "onnx", "huggingface", "safetensors"],
    out: Path | None = None,
    which: Literal["last", "best"] = "last",
) -> None:
    """Hands the backbone over to timm, torchvision, ONNX or the Hub.

    Args:
        run: the run's folder.
        format: what to write.
        out: where. Default: inside the run's folder.
        which: the last weights, or the checkpoint with the best online probe.
    """
    from selfsight.engine.export import export as export_  # noqa: PLC0415

    print(export_(run, format=format, out=out, which=which))


def import_(
    checkpoint: Path,
    *,
    out: Path | None = None,
    layout: Name | None = None,
    which: Which | None = None,
    pool: Pool | None = None,
    scale: Scale | None = None,
    activation: Activation | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Makes a run of a published checkpoint, which evaluate, embed, export and analyse take.

    Args:
        checkpoint: a .pth, .pt or .safetensors file of MAE, iBOT, DINO, MoCo v3, SimMIM, BEiT or CLIP.
        out: the run's folder. Default: runs/FILE.
        layout: whose checkpoint it is, where its keys do not tell.
        which: whose weights, where it has both. Default: as the paper evaluates.
        pool: a transformer's feature. Default: as the paper evaluates.
        scale: how images are normalised; half is mean and deviation 0.5. Default: as the official code.
        activation: of CLIP, which no tensor tells.
        heads: of a transformer of a width that was never published.
        image_size: another one than the checkpoint's, by interpolated positions.
        overwrite: delete the run in --out first.
    """
    from selfsight.importing.checkpoint import import_checkpoint  # noqa: PLC0415

    import_checkpoint(
        checkpoint,
        out=out,
        layout=layout,
        which=which,
        pool=pool,
        scale=scale,
        activation=activation,
        heads=heads,
        image_size=image_size,
        overwrite=overwrite,
        say=print,
    )


def views(
    method: str,
    *,
    data: str = "world",
    out: Path = Path("grid.png"),
    image_size: int | None = None,
    epoch: int = 0,
    seed: int = 0,
    positions: tuple[int, ...] = (),
    rows: int = 6,
) -> None:
    """A picture of what a method sees: originals beside their views.

    Args:
        method: a name from `selfsight list`.
        data: the images.
        out: PNG to write.
        image_size: pixels a side. Default: as in pretraining.
        epoch: which epoch's views.
        seed: the run's seed.
        positions: these images. Default: the first ones.
        rows: how many images.
    """
    from selfsight.data.opening import open_data  # noqa: PLC0415
    from selfsight.data.splits import Chosen  # noqa: PLC0415
    from selfsight.recipes.assembly import assemble  # noqa: PLC0415
    from selfsight.report.grid import views_grid  # noqa: PLC0415

    catalogue.card(method)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {out}; the picture is a PNG, so its name must end in .png")
    if rows < 1:
        raise UserError(f"--rows is {rows}; it must be at least 1")
    source = open_data(data, image_size=image_size, seed=seed)
    few = min(4, len(source))  # some methods compare images
    flags = Flags(data=data, image_size=image_size, seed=seed, batch_size=few)
    flags.check()
    made = assemble(method, flags, {}, samples=len(source), native=source.native, training=False)
    if made.recipe.images is not None:
        source = Chosen(source, made.recipe.images, name=source.name)
    picture = views_grid(
        made.recipe.views, source, positions=list(positions) or None, epoch=epoch, seed=seed, rows=rows
    )
    picture.save(out)
    print(out)


def report(run: Path) -> None:
    """Writes a run's page, report.html, anew."""
    from selfsight.report.page import write_report  # noqa: PLC0415

    print(write_report(run))


def bench(name: str, words: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = ()) -> None:
    """Runs a benchmark of a repository's checkout, `ladder` for instance.

    Args:
        name: a script in `benchmarks/`; its own flags follow.
        words: flags of the script.
    """
    import subprocess  # noqa: PLC0415

    folder = Path.cwd() / "benchmarks"
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")}
    if not scripts:
        raise UserError(f"there is no folder {folder}; benchmarks run from a checkout of the repository")
    if name not in scripts:
        raise unknown("benchmark", name, scripts)
    code = subprocess.run([sys.executable, str(scripts[name]), *words], check=False).returncode
    if code:
        raise SystemExit(code)


def demo(*, out: Path = Path("runs/demo"), epochs: int | None = None) -> None:
    """Pretrains SimCLR on the embedded world and shows what was learnt, in a few minutes on a laptop.

    Args:
        out: the run's folder, overwritten.
        epochs: passes over the world's 5,000 images. Default: what two cores do within five minutes.
    """
    from selfsight.demo import EPOCHS  # noqa: PLC0415
    from selfsight.demo import demo as demo_  # noqa: PLC0415

    demo_(out, epochs=epochs or EPOCHS)
