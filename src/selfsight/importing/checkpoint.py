"""``selfsight import``: a published checkpoint becomes a run's folder, to be evaluated, embedded and exported."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from selfsight.encoders.backbone import Backbone
from selfsight.encoders.store import save_encoder
from selfsight.engine.run import OpenRun, open_run, prepare_folder, versions, view_facts, write_settings
from selfsight.errors import UserError, unknown
from selfsight.flags import Flags
from selfsight.importing.layouts import LAYOUTS, SCALES, SIZES, Activation, Layout, Name, Pool, Scale, Which, kind_of
from selfsight.importing.parts import LeftOut, take_apart
from selfsight.importing.reading import read_checkpoint, sha256
from selfsight.importing.shapes import Asked, Shape, shape_of
from selfsight.importing.weights import build, official
from selfsight.views.pipelines import PlainView, plain_view
from selfsight.views.view import Normalise

WHOLE = 384
"""From this size on MAE, BEiT and their kin are evaluated on the whole central square."""


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint."""

    encoder: Backbone
    layout: str
    which: Which | None
    shape: Shape
    plain: PlainView
    left_out: tuple[LeftOut, ...]


def import_checkpoint(
    checkpoint: Path | str,
    *,
    out: Path | str | None = None,
    layout: Name | None = None,
    which: Which | None = None,
    pool: Pool | None = None,
    scale: Scale | None = None,
    activation: Activation | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> OpenRun:
    """Makes a run of a published checkpoint of MAE, iBOT, DINO, MoCo v3, SimMIM, BEiT or CLIP, and returns it.

    The file is read without executing anything of it. Its backbone is found by its keys and sizes and loaded strictly
    into timm's model; what else it holds is named in ``run.yaml``, and a tensor that nothing explains is an error.

    Args:
        checkpoint: a ``.pth`` or ``.pt`` file, or ``.safetensors``.
        out: the folder; by default ``runs/`` and the file's name.
        layout: whose checkpoint it is, where the keys do not tell: several methods write a plain ViT alike.
        which: teacher or student (of MoCo v3 the momentum and the base encoder), where the file has both. By default
            the one that the paper evaluates.
        pool: a transformer's feature: its class token or the mean of its patch tokens. By default as the paper.
        scale: how images are normalised. By default as the method's official code.
        activation: of CLIP, which no tensor tells.
        heads: of a transformer whose width is none of the published ones.
        image_size: another one than the checkpoint's: positions are interpolated by timm.
        overwrite: delete the run in ``out`` first.
        say: where the summary goes, ``print`` for instance.

    Raises:
        UserError: in one line; ``out`` is then as it was.

    Example::

        run = selfsight.import_checkpoint("mae_pretrain_vit_base.pth", layout="mae")
        selfsight.evaluate(run.path, data="labelled/")
    """
    for name, given, known in (("which", which, Which), ("pool", pool, Pool), ("activation", activation, Activation)):
        if given is not None and given not in get_args(known):
            raise unknown(name, given, get_args(known))
    if scale is not None and scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    path = Path(checkpoint)
    asked = Asked(heads, image_size, pool, activation)
    for name, number in (("heads", heads), ("image-size", image_size)):
        if number is not None and number < 1:
            raise UserError(f"--{name} is {number}; it must be at least 1")
    try:
        made = _made(path, asked, layout=layout, which=which, scale=scale)
    except ValueError as error:
        raise UserError(str(error)) from error
    folder = Path(out) if out is not None else Path("runs") / path.name.partition(".")[0]
    facts = _facts(made, path)
    prepare_folder(folder, Flags(overwrite=overwrite), resumable=False)
    normalise = {"mean": list(made.plain.normalise.mean), "std": list(made.plain.normalise.std)}  # pyright: ignore[reportOptionalMemberAccess]
    options = {"layout": layout, "which": which, "pool": pool, "scale": scale, "activation": activation, "heads": heads}
    words = [str(path), *_words({**options, "image-size": image_size, "out": folder})]
    # first: who is killed before the weights are there leaves a run to --overwrite, never one beside another's weights
    write_settings(folder, _settings(made, facts, folder, shlex.join(["selfsight", "import", *words])))
    save_encoder(made.encoder, folder, normalise=normalise, imported=facts)
    for line in _summary(made, folder) if say else ():
        say(line)  # pyright: ignore[reportOptionalCall]
    return open_run(folder)


def _made(path: Path, asked: Asked, *, layout: str | None, which: Which | None, scale: str | None) -> Imported:
    content = read_checkpoint(path)
    name, whose, state, buffers, left_out = take_apart(content, path, layout, which)
    known = LAYOUTS[name]
    kind = kind_of(state)
    if kind is None or kind not in known.kinds:
        raise UserError(f"{path} holds no backbone of {known.title}")
    state = official(kind, state)
    if kind == "clip" and asked.activation is None and any(left.part == SIZES for left in left_out):
        asked = asked._replace(activation="quickgelu")
    shape = shape_of(kind, buffers | state, known, asked)
    return Imported(build(kind, shape, state), name, whose, shape, _plain(shape, known, scale), left_out)


def _plain(shape: Shape, layout: Layout, scale: str | None) -> PlainView:
    """The evaluation view of the method's official code, of the size that the encoder is built for."""
    mean, std = SCALES[scale or layout.scale]
    size = shape.image_size
    resize = size if layout.whole or size >= WHOLE else None
    return plain_view(size, Normalise(mean, std).of(shape.channels), resize=resize, interpolation=layout.interpolation)


def _facts(made: Imported, path: Path) -> dict[str, Any]:
    """Where the weights come from, for run.yaml and encoder.json."""
    layout = LAYOUTS[made.layout]
    return {
        "file": path.name,
        "sha256": sha256(path),
        "layout": made.layout,
        "title": layout.title,
        "arxiv": layout.arxiv,
        **({"which": made.which} if made.which else {}),
        "probe": layout.probe,
        "native_size": made.shape.native_size,
        "view": view_facts(made.plain),
        "left_out": [
            {"part": left.part, "tensors": left.tensors, "numbers": left.numbers, "keys": list(left.keys)}
            for left in made.left_out
        ],
    }


def _words(options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def _settings(made: Imported, facts: Mapping[str, Any], folder: Path, command: str) -> dict[str, Any]:
    return {
        "selfsight": versions()["selfsight"],
        "method": f"imported {made.layout}",
        "imported": dict(facts),
        "flags": {
            "backbone": made.shape.name,
            "image_size": made.shape.image_size,
            "channels": made.shape.channels,
            "out": str(folder),
        },
        "resolved": {
            "image_size": made.shape.image_size,
            "backbone": made.shape.name,
            "backbone_options": dict(made.shape.options),
            "views": made.plain.describe(),
        },
        "data": {"name": "", "samples": 0, "fingerprint": ""},
        "versions": versions(),
        "command": command,
    }


def _summary(made: Imported, folder: Path) -> list[str]:
    numbers = sum(p.numel() for p in made.encoder.parameters())
    whose = f", the {made.which}'s weights" if made.which else ""
    first = f"{folder}: {LAYOUTS[made.layout].title}{whose}: {made.shape.name}, {numbers:,} numbers"
    lines = [first, f"sees images as {made.plain.describe()}; gives {made.encoder.width} features"]
    return lines + ([f"left out: {', '.join(map(str, made.left_out))}"] if made.left_out else [])
