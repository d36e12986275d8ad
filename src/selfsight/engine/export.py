"""A trained encoder for other programs: timm, torchvision, ONNX, the Hub's folders. Each is checked as it is made.

What an export computes is compared with the encoder on random images before its path is returned: to 1e-5, relative to
the largest feature where that is above 1 (the same for ONNX, whose kernels add in another order).
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
import torchvision
from safetensors.torch import load_file, save
from torch import Tensor, nn

from selfsight.encoders.build import has_small_stem
from selfsight.encoders.norms import replace_batch_norms
from selfsight.encoders.stem import adapt_stem
from selfsight.encoders.store import CHECKSUM, WEIGHTS, load_encoder, read_facts, replace_file, save_encoder, weights
from selfsight.engine.run import open_run
from selfsight.errors import UserError, unknown
from selfsight.recipes.assembly import encoder_facts

Format = Literal["timm", "torchvision", "onnx", "huggingface", "safetensors"]
TOLERANCE = 1e-5


def export(
    run: Path | str | nn.Module,
    format: Format,
    out: Path | str | None = None,
    *,
    which: Literal["last", "best"] = "last",
) -> Path:
    """Writes the encoder of ``run`` in ``format`` and returns the path of what was written.

    - ``timm``: ``model.safetensors``, strictly loadable into ``timm.create_model``, and a README that shows how;
    - ``torchvision``: the same for torchvision's ResNets with ``fc = Identity``;
    - ``onnx``: one file, ``images`` to ``features``, for batches of any size (needs ``pip install 'selfsight[onnx]'``);
    - ``huggingface``: a folder as timm's models have it on the Hub, for ``timm.create_model("local-dir:PATH")``;
    - ``safetensors``: selfsight's own two files, for ``selfsight.encoders.store.load_encoder``.

    Args:
        run: a run's folder (any folder with ``encoder.safetensors``), or an encoder. A run that has not ended is taken
            from its last checkpoint.
        format: as above.
        out: the folder to write, or for ONNX a file; by default ``export/FORMAT`` in the run, or here for an encoder.
        which: a run's last weights, or the checkpoint with the best online probe.

    Raises ``UserError`` in one line where the format has no counterpart of the encoder.
    """
    if format not in get_args(Format):
        raise unknown("export format", format, get_args(Format))
    facts: Mapping[str, Any] = {}
    place = Path("export")
    if isinstance(run, nn.Module):
        encoder = run
    else:
        folder = Path(run)
        encoder, facts, place = *_opened(folder, which), folder / "export"
    training = encoder.training
    try:
        return _WRITERS[format](encoder.eval(), facts, Path(out) if out is not None else place / format)
    finally:
        encoder.train(training)


def _opened(folder: Path, which: Literal["last", "best"]) -> tuple[nn.Module, Mapping[str, Any]]:
    if which == "last" and ((folder / WEIGHTS).exists() or not (folder / "checkpoints").exists()):
        return load_encoder(folder), read_facts(folder)
    run = open_run(folder)
    return run.encoder(which), encoder_facts(run.assembly, run.settings)


def _timm(encoder: Any, facts: Mapping[str, Any], out: Path) -> Path:
    if encoder.arguments is None:
        raise _no_counterpart(encoder, "timm")
    model = timm.create_model(**encoder.arguments, num_classes=0)
    lines = ["import timm", "from safetensors.torch import load_file", ""]
    lines += [f"model = timm.create_model({_call(encoder.arguments)}, num_classes=0)"]
    if has_small_stem(encoder):
        adapt_stem(model)
        lines = ["import selfsight", *lines, "selfsight.adapt_stem(model)  # the stem for small images"]
    norm = encoder.options.get("norm")
    if norm is not None:
        replace_batch_norms(model, norm)
        lines = ["from selfsight.encoders.norms import replace_batch_norms", *lines]
        lines += [f'replace_batch_norms(model, "{norm}")']
    return _strict(encoder, model, facts, out, lines)


def _torchvision(encoder: Any, facts: Mapping[str, Any], out: Path) -> Path:
    name = (encoder.arguments or {}).get("model_name", encoder.name)
    extra = {k: v for k, v in (encoder.arguments or {}).items() if k not in ("model_name", "in_chans")}
    if extra or not isinstance(encoder.model, timm.models.ResNet) or name not in torchvision.models.list_models():
        raise _no_counterpart(encoder, "torchvision")
    model: Any = torchvision.models.get_model(name, weights=None)
    model.fc = nn.Identity()
    lines = ["import torch", "import torchvision", "from safetensors.torch import load_file", ""]
    lines += [f'model = torchvision.models.get_model("{name}", weights=None)', "model.fc = torch.nn.Identity()"]
    if encoder.channels != 3:
        model.conv1 = nn.Conv2d(encoder.channels, 64, 7, stride=2, padding=3, bias=False)
        lines += [f"model.conv1 = torch.nn.Conv2d({encoder.channels}, 64, 7, stride=2, padding=3, bias=False)"]
    if has_small_stem(encoder):
        adapt_stem(model)
        lines = ["import selfsight", *lines, "selfsight.adapt_stem(model)  # the stem for small images"]
    if model.state_dict().keys() != encoder.model.state_dict().keys():
        raise _no_counterpart(encoder, "torchvision")
    return _strict(encoder, model, facts, out, lines)


def _strict(encoder: Any, model: nn.Module, facts: Mapping[str, Any], out: Path, lines: list[str]) -> Path:
    """Weights that load strictly into ``model``, and a README of ``lines``."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "model.safetensors", save(weights(encoder)))
    model.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    _check(encoder, model.eval())
    lines = [*lines, 'model.load_state_dict(load_file("model.safetensors"), strict=True)']
    text = f"# {encoder.name}\n\n{_story(encoder, facts)}\n\n```python\n" + "\n".join(lines) + "\n```\n"
    replace_file(out / "README.md", text.encode(errors="backslashreplace"))
    return out


def _huggingface(encoder: Any, facts: Mapping[str, Any], out: Path) -> Path:
    if encoder.arguments is None:
        raise _no_counterpart(encoder, "the Hub's timm folders")
    if has_small_stem(encoder):
        raise UserError(
            f"timm's folders cannot say that {encoder.name} has a stem for small images; use --format timm instead"
        )
    if facts.get("grey"):
        raise UserError(f"timm's folders cannot say that {encoder.name} takes grey images; use --format timm instead")
    if "norm" in encoder.options:
        raise UserError(f"timm's folders cannot say that {encoder.name} has no batch norm; use --format timm instead")
    arguments = {key: value for key, value in encoder.arguments.items() if key != "model_name"}
    normalise = facts.get("normalise") or {"mean": [0.0] * encoder.channels, "std": [1.0] * encoder.channels}
    config = {
        "architecture": encoder.arguments["model_name"],
        "num_classes": 0,
        "num_features": encoder.width,
        "model_args": {"num_classes": 0, **arguments},
        "pretrained_cfg": {
            "input_size": [encoder.channels, encoder.image_size, encoder.image_size],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            **normalise,
            "num_classes": 0,
            "first_conv": encoder.model.pretrained_cfg.get("first_conv"),
            "classifier": encoder.model.pretrained_cfg.get("classifier"),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "model.safetensors", save(weights(encoder)))
    replace_file(out / "config.json", json.dumps(config, indent=2).encode())
    _check(encoder, timm.create_model(f"local-dir:{out}", pretrained=True).eval())
    text = (
        f"---\nlibrary_name: timm\n---\n# {encoder.name}\n\n{_story(encoder, facts)}\n\n```python\nimport timm\n\n"
        'model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True)\n```\n'
    )
    replace_file(out / "README.md", text.encode(errors="backslashreplace"))
    return out


def _onnx(encoder: Any, facts: Mapping[str, Any], out: Path) -> Path:
    try:
        import onnx  # noqa: F401, PLC0415 - an extra
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}; pip install 'selfsight[onnx]'") from error
    if encoder.image_size is None:
        raise UserError(f"{encoder.name} does not say its image size; export its module with torch.onnx.export")
    path = out if out.suffix == ".onnx" else out / "encoder.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.onnx.export(
            encoder.model,
            (_images(encoder),),
            str(beside),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])
    _check(encoder, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]))
    beside.replace(path)
    return path


def _safetensors(encoder: Any, facts: Mapping[str, Any], out: Path) -> Path:
    own = ("format", "name", "image_size", "channels", "width", "stride", "options", "timm", "small_stem", CHECKSUM)
    return save_encoder(encoder, out, **{key: value for key, value in facts.items() if key not in own})


_WRITERS: dict[str, Callable[[Any, Mapping[str, Any], Path], Path]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "onnx": _onnx,
    "huggingface": _huggingface,
    "safetensors": _safetensors,
}


def _images(encoder: Any, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, encoder.channels, encoder.image_size, encoder.image_size, generator=generator)


@torch.no_grad()
def _check(encoder: Any, other: Callable[[Tensor], Tensor]) -> None:
    """Compares the two on images; a difference means that the export is wrong, whatever loaded strictly."""
    for batch in (3, 1):
        x = _images(encoder, batch)
        expected, got = encoder.model(x), other(x)
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        worst = float((expected - got).abs().max())
        if not worst <= allowed:
            raise RuntimeError(f"the exported {encoder.name} differs from the encoder by {worst:.2g}; please report it")


def _call(arguments: Mapping[str, Any]) -> str:
    rest = [f"{key}={value!r}" for key, value in arguments.items() if key != "model_name"]
    return ", ".join([f'"{arguments["model_name"]}"', *rest])


def _story(encoder: Any, facts: Mapping[str, Any]) -> str:
    """What one must know to use the weights."""
    origin = f"Pretrained with {facts['method']} by selfsight. " if facts.get("method") else ""
    if from_others := facts.get("imported"):
        origin = f"The backbone of {from_others['file']}, a checkpoint of {from_others['title']}. "
    normalise = facts.get("normalise")
    scale = (
        f"normalised with mean {normalise['mean']} and standard deviation {normalise['std']}"
        if normalise
        else "in [0, 1], not normalised further"
    )
    kinds = {
        "luma": "ITU-R 601's luma, three times over",
        "lightness": "CIE Lab lightness / 100, three times over",
    }
    kind = "RGB" if encoder.channels == 3 else f"{encoder.channels}-channel"
    shown = f", as {kinds[facts.get('greyscale', 'luma')]}" if facts.get("grey") else ""
    return f"{origin}Takes {kind} images of {encoder.image_size} px{shown}, {scale}; gives {encoder.width} features."


def _no_counterpart(encoder: Any, program: str) -> UserError:
    return UserError(f"{encoder.name} has no counterpart in {program}; use --format onnx or safetensors")
