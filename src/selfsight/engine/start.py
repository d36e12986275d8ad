"""What a run begins with: its data, its encoder and recipe, and the weights of another run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfsight.data.opening import open_data
from selfsight.data.protocol import Source
from selfsight.data.splits import channels_of
from selfsight.encoders.backbone import Backbone, Transformer
from selfsight.encoders.beit import BeitEncoder
from selfsight.encoders.swin import Swin
from selfsight.engine import checkpoint
from selfsight.engine.run import OpenRun, open_run, read_settings, shape_in
from selfsight.errors import UserError
from selfsight.flags import Flags
from selfsight.method import Method
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import Assembly, Shape, Start, assemble, resolve_size, usual_encoder

Say = Callable[[str], None]


def open_source(flags: Flags) -> Source:
    """The images of a run."""
    return open_data(
        flags.data,
        split="train",
        image_size=flags.image_size,
        limit=flags.limit,
        labels=flags.labels,
        seed=flags.seed,
        channels=flags.channels,
    )


def prepare(method: str, flags: Flags, hyper: Mapping[str, Any], source: Source, folder: Path, *, say: Say) -> Assembly:
    """Encoder and recipe; weights to begin with are there before the recipe copies them.

    A run that begins with another one has its backbone, unless the call names one. A resumed run needs neither that nor
    the published weights: it takes its own, which tell the recipe as well as those that the encoder was trained before.
    """
    if flags.channels != channels_of(source):
        n = channels_of(source)
        raise UserError(f"--channels is {flags.channels}, but the images of {source.name} have {n}; use --channels {n}")
    begun, start, shape, built = None, None, None, flags
    if flags.resume and (flags.init_from or flags.pretrained):
        state = checkpoint.load(folder / "checkpoints" / "last.pt")["method"]
        weights = {key.removeprefix("encoder."): x for key, x in state.items() if key.startswith("encoder.")}
        settings = read_settings(folder)
        start, shape = Start(weights, settings["resolved"]["image_size"]), shape_in(settings)
        built = replace(flags, pretrained=False)
    elif flags.init_from:
        begun = open_run(flags.init_from)
        encoder = begun.encoder()
        start = Start(encoder.state_dict(), begun.image_size)
        if not flags.backbone:
            size = resolve_size(flags, source.native)
            shape = _shape_of(encoder, usual_encoder(method, hyper, size))
    assembly = assemble(
        method,
        built,
        hyper,
        samples=len(source),
        native=source.native,
        start=start,
        shape=shape,
        labels=source.labels,
        classes=len(class_names(source)),
    )
    if begun:
        say(f"begins with {_begin_with_(assembly.recipe.method, begun, method)} of {begun.path}")
    return assembly


def _shape_of(encoder: Backbone, usual: Shape) -> Shape:
    """Another run's encoder.

    How much of a transformer is left out at random stays the method's own choice, and so does its feature, if that was
    the mean of the patches only because the other method does not train the class token.
    """
    options = dict(encoder.options)
    if isinstance(encoder, Transformer | BeitEncoder | Swin):
        options.pop("drop_path_rate", None)
        options |= {name: value for name, value in usual.options.items() if name == "drop_path_rate"}
    pooled = (options.get("global_pool"), options.get("fc_norm"))
    if isinstance(encoder, Transformer) and pooled == ("avg", False) and options.get("class_token", True):
        del options["global_pool"], options["fc_norm"]
    return Shape(encoder.name, options)


def class_names(source: Source) -> list[str]:
    """The names of the labels; their numbers where the source has none."""
    if source.labels is None or source.classes:
        return list(source.classes)
    return [str(number) for number in range(int(source.labels.max()) + 1)]


def _begin_with_(method: Method, begun: OpenRun, name: str) -> str:
    """Takes all of another run's weights where it is the same method; the encoder's are there already.

    Fine-tuning takes the layers of the head that it keeps.
    """
    layers = [key for key in method.state_dict() if key.startswith("projector.")]
    if name in catalogue.stages() and layers:
        if not (begun.path / "checkpoints" / "last.pt").exists():
            raise UserError(f"{begun.path} has no checkpoint to take the head's layers from; use --head-layers 0")
        state = begun.recipe().method.state_dict()
        method.load_state_dict({key: state[key] for key in layers}, strict=False)
        return "the encoder and the first layers of the head"
    if begun.method == name and (begun.path / "checkpoints" / "last.pt").exists():
        state, mine = begun.recipe().method.state_dict(), method.state_dict()
        if state.keys() == mine.keys() and all(state[key].shape == mine[key].shape for key in mine):
            method.load_state_dict(state)
            return "all weights"
    return "the encoder"


def same_data(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to go on with a run whose data is no longer what it was."""
    before, now = read_settings(folder)["data"], settings["data"]
    # of a list of files the fingerprint holds the labels' numbers; what their names say counts where they are learnt
    renamed = before.get("classes", now.get("classes")) != now.get("classes")
    if before["fingerprint"] != now["fingerprint"] or renamed:
        raise UserError(
            f"the data of {folder} has changed since the run began ({before['samples']} images then, {now['samples']} "
            f"now, or other names, sizes, classes or labels): bring the old data back and --resume, or train on the "
            f"new with --init-from {folder} and another --out"
        )
