"""From flags to a recipe: encoder, setting, the recipe's own choices, overrides; with what was resolved, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfsight.data.order import SHUFFLED
from selfsight.encoders.backbone import Backbone
from selfsight.encoders.build import build_encoder
from selfsight.encoders.swin import Swin
from selfsight.errors import UserError, unknown
from selfsight.flags import Flags
from selfsight.parts.batchnorm import ScopedBatchNorm
from selfsight.recipes import catalogue
from selfsight.recipes.catalogue import Card
from selfsight.recipes.quick import quick
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, in_range
from selfsight.schedules import constant
from selfsight.sizes import SMALL

_UNFIT = (TypeError, ArithmeticError, LookupError, AttributeError, AssertionError, RuntimeError, MemoryError)
"""What a recipe's constructors raise of numbers that they cannot mean, a width of -1 for instance."""
UPDATES = 8
"""At least so many updates an epoch, where the data are smaller than the paper's batch."""


@dataclass(frozen=True)
class Start:
    """An encoder's state to begin with, and the size of the images that it was built for."""

    weights: Mapping[str, Tensor]
    image_size: int


class Shape(NamedTuple):
    """What ``build_encoder`` is told of an encoder that is not the recipe's choice."""

    backbone: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Assembly:
    """A recipe and what was resolved on the way to it."""

    recipe: Recipe
    resolved: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What a person should be told about it."""

    @property
    def encoder(self) -> Any:
        """What is kept and evaluated: the method's own choice, DINO's teacher for instance."""
        return self.recipe.method.encoder


def resolve_size(flags: Flags, native: tuple[int, int, int] | None, sizes: Sequence[int] = ()) -> int:
    """The image size: the flag's, else the data's own where all images share one of at most 96 px, else 224.

    Where the method's encoder takes certain ``sizes`` only, the largest of them that is not larger, or the smallest.
    """
    if flags.image_size:
        return flags.image_size
    size = max(native[1:]) if native and max(native[1:]) <= SMALL else 224
    return max([s for s in sizes if s <= size] or sizes[:1] or [size])


def assemble(
    method: str,
    flags: Flags,
    hyper: Mapping[str, Any],
    *,
    samples: int,
    native: tuple[int, int, int] | None,
    start: Start | None = None,
    shape: Shape | None = None,
    labels: np.ndarray | None = None,
    classes: int = 0,
    training: bool = True,
    begun: bool = False,
) -> Assembly:
    """Builds encoder and recipe. Equal flags give equal weights: the seed is set here.

    ``start`` is an encoder's state to begin with; it is there before the recipe is, whose momentum targets are copies.
    ``begun`` says that the encoder was trained before, where neither that state nor the flags do. ``shape`` is of
    another run's encoder, which this one begins with; it stands in run.yaml, from where it is given when the run is
    opened again.
    ``labels`` and the number of ``classes`` are for stages that learn from them; ``training`` is False where a run is
    opened again, or only its views are looked at.
    """
    card = _card(method, hyper)
    function = catalogue.recipe_function(method)
    own = catalogue.hyper_parameters(method)
    for name in hyper:
        if name not in own:
            raise unknown(f"flag of {method}", name, own)
    size = resolve_size(flags, native, card.sizes)
    backbone, told = shape or (Shape(flags.backbone, {}) if flags.backbone else usual_encoder(method, hyper, size))
    options = dict(told)
    if card.norm:
        options.setdefault("norm", card.norm)
    if flags.patch_size:
        options["patch_size"] = flags.patch_size
    begun = begun or start is not None or flags.pretrained or flags.init_from is not None
    torch.manual_seed(flags.seed)
    try:
        in_range(hyper)
        encoder = build_encoder(
            backbone, image_size=size, channels=flags.channels, pretrained=flags.pretrained, **options
        )
        if start is not None:
            _begin_with_(encoder, start, f"{backbone} at {size} px")
            if (windows := encoder.options.get("window_size")) and not flags.resume:
                options["window_size"] = windows  # the start's, which neither the name nor the image size tells
        setting = Setting(
            encoder=encoder,
            image_size=size,
            channels=flags.channels,
            samples=samples,
            epochs=flags.epochs,
            batch_size=flags.batch_size,
            labels=labels,
            classes=classes,
            training=training,
            begun=begun,
        )
        recipe = function(setting, **hyper)
    except ValueError as error:
        raise UserError(str(error)) from error
    except _UNFIT as error:
        said = (str(error).splitlines() or [""])[0]
        raise UserError(f"{method} cannot be built from these flags ({type(error).__name__}: {said})") from error
    given, samples = samples, samples if recipe.images is None else len(recipe.images)
    if recipe.batch_size > samples and flags.batch_size is None:
        fits = max(_power_of_two(samples // UPDATES), 2, recipe.least)
        also: dict[str, Any] = {"start": start, "shape": shape, "begun": begun, "labels": labels, "classes": classes}
        also["training"] = training
        smaller = assemble(method, replace(flags, batch_size=fits), hyper, samples=given, native=native, **also)
        note = f"the paper's batch of {recipe.batch_size} is larger than the data, {samples} images: taking {fits}"
        return replace(smaller, notes=(note,))
    if flags.optimiser == "adamw":
        recipe = quick(recipe)
    recipe = replace(recipe, optimisers=_override(recipe.optimisers, flags))
    _check_batch(method, recipe, flags, samples)
    _groups_fit(recipe, recipe.batch_size // (flags.accumulate * flags.devices))
    return Assembly(recipe, _words(recipe, backbone, options, size))


def usual_encoder(method: str, hyper: Mapping[str, Any], size: int) -> Shape:
    """The recipe's own choice for images of ``size`` pixels."""
    card = _card(method, hyper)
    return Shape(card.small_encoder, card.small_options) if size <= SMALL else Shape(card.encoder, card.options)


def _card(method: str, hyper: Mapping[str, Any]) -> Card:
    """A stage has its pretraining's encoder."""
    return catalogue.entry(hyper.get("pretext", {}).get("method", method))


def _check_batch(method: str, recipe: Recipe, flags: Flags, samples: int) -> None:
    """Refuses a batch that the data, the devices or the method cannot share out."""
    if recipe.batch_size > samples:
        raise UserError(
            f"the batch of {recipe.batch_size} is larger than the data, {samples} images; "
            f"use --batch-size {_power_of_two(samples)} or less"
        )
    if recipe.batch_size % (flags.accumulate * flags.devices):
        raise UserError(
            f"--batch-size {recipe.batch_size} does not divide into {flags.devices} devices x "
            f"{flags.accumulate} micro-batches"
        )
    unit = getattr(recipe.order, "unit", 1)
    if recipe.batch_size % (flags.accumulate * flags.devices * unit):
        raise UserError(
            f"--batch-size {recipe.batch_size // unit} labelled images do not divide into {flags.devices} devices x "
            f"{flags.accumulate} micro-batches"
        )
    if recipe.batch_size // (flags.accumulate * flags.devices) < recipe.least:
        raise UserError(
            f"{method} compares {recipe.least} images at a time on each device; a batch of {recipe.batch_size} over "
            f"{flags.devices} devices x {flags.accumulate} micro-batches leaves fewer; use a larger --batch-size"
        )


def _groups_fit(recipe: Recipe, share: int) -> None:
    """Refuses a share of the batch that cannot be divided into the groups of its batch norms."""
    for module in recipe.method.modules():
        group = module.scope if isinstance(module, ScopedBatchNorm) else "all"
        if isinstance(group, int) and share > group and share % group:
            raise UserError(
                f"batch norm works on groups of {group} samples here, which do not divide {share}, the samples that a "
                f"device takes at a time; use --batch-size, --accumulate or --devices that give a multiple of {group}"
            )


def _begin_with_(encoder: Backbone, start: Start, what: str) -> None:
    try:
        encoder.load_state_dict(encoder.make_room_(start.weights) if isinstance(encoder, Swin) else start.weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip(".") if "\n" in str(error) else str(error)
        size = start.image_size
        hint = "" if size == encoder.image_size else f"; it was built for images of {size} px, try --image-size {size}"
        raise UserError(f"--init-from: the run's encoder does not fit {what}: {reason}{hint}") from None


def _override(specs: Mapping[str, OptimiserSpec], flags: Flags) -> dict[str, OptimiserSpec]:
    """``--lr`` moves the first optimiser's peak and the others' in proportion; ``--weight-decay`` moves all.

    An optimiser that asks to be kept stays as it is: its rate does not follow from the network's.
    """
    first = next(iter(specs.values()))

    def moved(spec: OptimiserSpec) -> OptimiserSpec:
        lr, decay = spec.lr, spec.weight_decay
        if flags.lr is not None:
            lr = lr.with_peak(flags.lr * lr.peak / first.lr.peak)
        if flags.weight_decay is not None:
            decay = decay.with_peak(flags.weight_decay) if decay.peak else constant(flags.weight_decay)
        return replace(spec, lr=lr, weight_decay=decay)

    return {name: spec if spec.keep else moved(spec) for name, spec in specs.items()}


def _power_of_two(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def _words(recipe: Recipe, backbone: str, options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """What was resolved, as plain values for run.yaml and for a person."""

    def optimiser(spec: OptimiserSpec) -> dict[str, Any]:
        build = spec.build.func if isinstance(spec.build, partial) else spec.build
        settings = dict(spec.build.keywords) if isinstance(spec.build, partial) else {}
        words = {"name": build.__name__, **{k: _plain(v) for k, v in settings.items()}}
        words |= {"lr": str(spec.lr), "weight_decay": str(spec.weight_decay)}
        return words | ({"clip": f"{spec.clip:g} ({spec.clip_each})"} if spec.clip else {})

    described = getattr(recipe.views, "describe", None)
    return {
        "image_size": size,
        "backbone": backbone,
        **({"backbone_options": {k: _plain(v) for k, v in options.items()}} if options else {}),
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        **({} if recipe.order == SHUFFLED else {"order": str(recipe.order)}),
        "optimisers": {name: optimiser(spec) for name, spec in recipe.optimisers.items()},
        **({"views": described()} if described else {}),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def encoder_facts(assembly: Assembly, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What encoder.json says beside the encoder's own facts."""
    plain = assembly.recipe.views.plain
    normalise = getattr(plain, "normalise", None)
    return {
        "method": settings["method"],
        "normalise": {"mean": list(normalise[0]), "std": list(normalise[1])} if normalise else None,
        **({"grey": True} if getattr(plain, "grey", False) else {}),
        **({"greyscale": grey} if (grey := getattr(plain, "greyscale", "luma")) != "luma" else {}),
        "data": settings["data"]["name"],
        "epochs": settings["resolved"]["epochs"],
        "selfsight": settings["selfsight"],
    }
