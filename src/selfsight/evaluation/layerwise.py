"""``layerwise``: a linear probe behind every stage of a frozen encoder, as the pretext tasks were measured.

Noroozi and Favaro (2016) and Zhang et al. (2016, 2017) compared what conv1 to conv5 of an AlexNet learn; the protocol
is that of Asano et al. (2020, arXiv 1904.13132, yukimasano/linear-probes). After each stage the map is max-pooled to at
most 9,600 numbers, batch-normalised without scale and classified linearly; Xavier weights, bias 0. All probes learn
side by side from the sum of their losses, which is each from its own: SGD, momentum 0.9, decay 1e-5, the rate 1e-2,
1e-3, 1e-4 and 1e-5 for ten of 36 epochs each (the last for six), batch 192, crops and flips; the encoder stands still.

**Differences**: the stages are those that the encoder names (timm's ``feature_info``: five of a ResNet, four of a Swin,
each block of a transformer, whose patch tokens are the map) or, where it names none that can be reached, its parts and
its output, not an AlexNet's layers after ReLU; pooling is adaptive,
to a grid that fits 9,600 numbers, where the paper chose window and stride for each layer; the test image is the central
crop, not the mean of ten. Fewer epochs shrink the schedule.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, cross_entropy
from torch.optim import SGD

from selfsight.batches import Images
from selfsight.data.loader import plain_batches
from selfsight.data.protocol import Source
from selfsight.encoders.protocol import Encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.evaluation.features import encode, frozen
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.score import Score, score
from selfsight.evaluation.stream import Place, average_buffers_, moved
from selfsight.recipes.recipe import OptimiserSpec, decay_all
from selfsight.schedules import constant, steps
from selfsight.views.protocol import Views

MOST = 9_600
"""Numbers that a stage's map is pooled to at most (conv1, conv3 and conv4 of the paper; 9,216 for the others)."""


@dataclass(frozen=True, kw_only=True)
class Layerwise:
    """The settings of the probes; they are saved with their scores."""

    epochs: int = 36
    batch_size: int = 192
    lr: float = 0.01
    most: int = MOST


_LISTS = (nn.Sequential, nn.ModuleList)


def stages(encoder: Encoder) -> dict[str, nn.Module]:
    """The encoder's stages by name, from the input on; its parts and its output where it names none."""
    model: Any = getattr(encoder, "model", encoder)
    info: Any = getattr(model, "feature_info", None)
    named = dict(cast(nn.Module, model).named_modules())
    found = {str(entry["module"]): named.get(str(entry["module"])) for entry in info or ()}
    if found and None not in found.values():
        return cast(dict[str, nn.Module], found)
    inside = next((key for key in ("stages", "blocks", "layers") if isinstance(named.get(key), _LISTS)), "")
    return {**dict(_parts(named[inside], inside)), "output": cast(nn.Module, encoder)}


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """What ``module`` is made of, as far as it is called: lists of modules never are."""
    for key, part in module.named_children():
        below = f"{name}.{key}" if name else key
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _parts(part, below)
        else:
            yield below, part


@contextmanager
def watched(encoder: Encoder) -> Iterator[dict[str, Tensor]]:
    """What each stage gave in the last forward pass, pooled to a row of at most ``MOST`` numbers."""
    rows: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        rows[name] = pooled(x)

    with maps_of(encoder, stages(encoder), keep):
        yield rows


@contextmanager
def maps_of(
    encoder: Encoder,
    parts: Mapping[str, nn.Module],
    keep: Callable[[str, Tensor], None],
    before: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Hands on what each of ``parts`` gives in each forward pass, and what each of ``before`` is given, as a map.

    Of several tensors it is the first that has a row for each image. A part that gives none is passed over.
    """
    model: Any = getattr(encoder, "model", encoder)
    last = str(getattr(model, "output_fmt", "")).upper().endswith("NHWC")
    prefix = getattr(model, "num_prefix_tokens", 0)
    images = 0

    def begin(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal images
        images = len(given[0])

    def enter(name: str, module: nn.Module, given: Any) -> None:
        y = _of_images(given, images)
        if y is not None:
            keep(name, as_map(y, prefix, channels_last=last))

    def leave(name: str, module: nn.Module, given: Any, out: Any) -> None:
        enter(name, module, out)

    hooks = [model.register_forward_pre_hook(begin)]
    hooks += [module.register_forward_pre_hook(partial(enter, name)) for name, module in (before or {}).items()]
    hooks += [module.register_forward_hook(partial(leave, name)) for name, module in parts.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _of_images(out: Any, images: int) -> Tensor | None:
    """The first tensor in what a module returned that holds features of so many images."""
    several = cast(Sequence[Any], out) if isinstance(out, tuple | list) else (out,)
    tensors = (y for y in several if isinstance(y, Tensor) and y.is_floating_point() and 2 <= y.ndim <= 4)
    return next((y for y in tensors if len(y) == images), None)


def as_map(out: Tensor, prefix: int, *, channels_last: bool) -> Float[Tensor, "b d y x"]:
    """A stage's output as a map: patch tokens as the square that they make up, without the ``prefix`` ones.

    Some stages come before a class token is there. Tokens that make up no square are a column, a feature is one place.
    A map that is square in one of the two orders of axes only is in that order, whatever ``channels_last`` says.

    >>> as_map(torch.zeros(2, 17, 8), 1, channels_last=False).shape
    torch.Size([2, 8, 4, 4])
    >>> as_map(torch.zeros(2, 4, 4, 8), 0, channels_last=False).shape
    torch.Size([2, 8, 4, 4])
    """
    if out.ndim == 2:
        return out[:, :, None, None]
    if out.ndim == 4:
        first, last = out.shape[1] == out.shape[2], out.shape[2] == out.shape[3]
        return out.permute(0, 3, 1, 2) if (first if first != last else channels_last) else out
    prefix = prefix_of(out.shape[1], prefix)
    patches = out[:, prefix:].transpose(1, 2)
    side = math.isqrt(patches.shape[2])
    return patches.unflatten(2, (side, side)) if side**2 == patches.shape[2] else patches[..., None]


def prefix_of(tokens: int, declared: int) -> int:
    """How many of ``tokens`` are no patches: those that a model declares, unless only without them there is a square.

    >>> prefix_of(197, 1), prefix_of(196, 1)
    (1, 0)
    """
    rest = tokens - declared
    return 0 if rest < 1 or (math.isqrt(rest) ** 2 != rest and math.isqrt(tokens) ** 2 == tokens) else declared


def pooled(x: Float[Tensor, "b d y x"], most: int = MOST) -> Float[Tensor, "b n"]:
    """Maxima over the finest grid, no finer than the map, that makes at most ``most`` numbers.

    >>> pooled(torch.zeros(2, 64, 56, 56)).shape, pooled(torch.zeros(2, 512, 7, 7)).shape
    (torch.Size([2, 9216]), torch.Size([2, 8192]))
    """
    side = min(max(int((most / x.shape[1]) ** 0.5), 1), *x.shape[2:])
    return adaptive_max_pool2d(x.float(), side).flatten(1)


def classifier(width: int, classes: int) -> nn.Sequential:
    """Batch norm without scale, and a linear layer."""
    linear = nn.Linear(width, classes)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False), linear)


def layerwise(encoder: Encoder, lesson: Lesson) -> tuple[dict[str, Score], Layerwise]:
    """Each stage's test score, from the input on, and the settings.

    Nothing of the encoder changes, parameters or buffers.
    """
    place, standard = lesson.place, Layerwise()
    probe = Layerwise(
        epochs=lesson.epochs or standard.epochs,
        batch_size=lesson.batch(standard.batch_size),
        lr=standard.lr if lesson.lr is None else lesson.lr,
    )
    spec = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=steps(probe.lr, at=(10 / 36, 20 / 36, 30 / 36), factor=0.1),
        weight_decay=constant(1e-5),
        groups=decay_all,
    )
    cast(nn.Module, encoder).to(place.device)
    heads, optimiser, see = nn.ModuleList(), None, partial(encode, encoder, precision=lesson.precision)
    with frozen(encoder), watched(encoder) as rows:
        for x, labels, clock in lesson.batches(epochs=probe.epochs, batch_size=probe.batch_size):
            with torch.no_grad():
                see(x)
            if optimiser is None:  # the widths are known now; equal seeds give equal weights on every process
                heads = _classifiers(rows, lesson.classes, lesson.seed).to(place.device)
                optimiser = build_optimiser(spec, heads.named_parameters())
            losses = [cross_entropy(head(row), labels) for head, row in zip(heads, rows.values(), strict=True)]
            lesson.update_(optimiser, spec, torch.stack(losses).sum(), clock)
        average_buffers_(heads)
        answers, positions = _answers(see, rows, list(heads.eval()), _plain_inputs(lesson.test, lesson.plain, place))
        known = torch.as_tensor(lesson.test.labels)[positions]
        return {name: score(answer, known) for name, answer in zip(rows, answers, strict=True)}, probe


def _classifiers(rows: dict[str, Tensor], classes: int, seed: int) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(classifier(row.shape[1], classes) for row in rows.values())


def _plain_inputs(test: Source, plain: Views[Images], place: Place) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch of ``test`` as the encoder takes it, and where its images stand."""
    for images, key in plain_batches(test, plain, batch_size=256, workers=place.workers, cache_dir=place.cache_dir):
        yield plain.render(moved(images, place.device), plain.plan(key), key).x, key.index.cpu()


@torch.inference_mode()
def _answers(
    see: Callable[[Tensor], Tensor],
    rows: dict[str, Tensor],
    heads: Sequence[nn.Module],
    given: Iterable[tuple[Tensor, Tensor]],
) -> tuple[list[Tensor], Tensor]:
    """Every head's scores of all images, and where they stand; each process classifies all of them."""
    found: list[list[Tensor]] = [[] for _ in heads]
    positions: list[Tensor] = []
    for x, index in given:
        see(x)
        for answer, head, row in zip(found, heads, rows.values(), strict=True):
            answer.append(head(row).cpu())
        positions.append(index)
    return [torch.cat(answer) for answer in found], torch.cat(positions)
