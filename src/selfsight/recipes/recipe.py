"""A recipe: a method's wiring. What a run knows goes in (``Setting``), what a run needs comes out (``Recipe``)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from torch import nn
from torch.optim import Optimizer

from selfsight.data.order import SHUFFLED, Order
from selfsight.encoders.protocol import Encoder
from selfsight.method import Method
from selfsight.schedules import Curve
from selfsight.sizes import SMALL
from selfsight.views.protocol import Views

B = TypeVar("B")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run knows before it chooses: ``None`` leaves the choice to the recipe."""

    encoder: Encoder
    image_size: int
    channels: int = 3
    samples: int
    epochs: int | None = None
    batch_size: int | None = None
    labels: np.ndarray | None = None
    """Each image's class, -1 where unknown: for what learns from labels. Self-supervised recipes never look."""
    classes: int = 0
    training: bool = True
    """False where a run is only opened again: there are no labels then."""
    begun: bool = False
    """Whether the encoder was trained before (``--pretrained``, ``--init-from``), so that its weights stay."""

    @property
    def small(self) -> bool:
        """Whether the papers' small-image settings apply (up to 96 px)."""
        return self.image_size <= SMALL


@dataclass(frozen=True)
class Group:
    """How one parameter is treated: decayed or not, and its learning rate's factor, or its peak for all time."""

    decay: bool = True
    lr_scale: float = 1.0
    fixed_lr: bool = False
    adapt: bool = True
    """Whether LARS scales its step by the layer's trust ratio."""


def positive(**given: float | None) -> None:
    """Refuses hyper-parameters that must be above 0; None stands for the recipe's default.

    >>> positive(temperature=0.0)
    Traceback (most recent call last):
    ValueError: --temperature must be greater than 0, not 0
    """
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be greater than 0, not {value:g}")


def in_range(given: Mapping[str, Any]) -> None:
    """Refuses what no recipe can mean by a hyper-parameter of its name: a momentum of 1.5, crops or epochs below 0.

    >>> in_range({"momentum": 1.5})
    Traceback (most recent call last):
    ValueError: --momentum must lie between 0 and 1, not 1.5
    """
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise ValueError(f"{flag} must be a finite number, not {value:g}")
        if name.endswith(("momentum", "drop_path", "dropout", "mask_ratio")) and not 0 <= value <= 1:
            raise ValueError(f"{flag} must lie between 0 and 1, not {value:g}")
        if name.endswith(("_epochs", "_crops")) and value < 0:
            raise ValueError(f"{flag} must be 0 or greater, not {value:g}")


def decay_all(name: str, parameter: nn.Parameter) -> Group:
    """Every parameter decays and adapts (SwAV, RotNet)."""
    return Group()


def skip_vectors(name: str, parameter: nn.Parameter) -> Group:
    """Biases, norms' scales and other vectors neither decay nor adapt (SimCLR, BYOL, Barlow Twins, DINO, MAE)."""
    vector = parameter.ndim <= 1
    return Group(decay=not vector, adapt=not vector)


@dataclass(frozen=True, kw_only=True)
class OptimiserSpec:
    """An optimiser before it meets its parameters; ``lr`` is already scaled by the batch."""

    build: Callable[..., Optimizer]
    lr: Curve
    weight_decay: Curve
    groups: Callable[[str, nn.Parameter], Group]
    clip: float | None = None
    clip_each: Literal["all", "tensor"] = "all"
    keep: bool = False
    """Whether ``--optimiser``, ``--lr`` and ``--weight-decay`` leave it as it is: its rate is for what it trains."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[B]):
    """All that a run needs; ``batch_size`` counts samples per update over all devices.

    ``order`` is that of the data; an epoch is as many updates as the data fill, whatever the order.
    """

    method: Method[B]
    views: Views[B]
    optimisers: Mapping[str, OptimiserSpec]
    epochs: int
    batch_size: int
    order: Order = SHUFFLED
    least: int = 1
    """Samples that a device must be given at a time: a method may compare so many."""
    images: np.ndarray | None = None
    """The places of the images to train on, where these are not all: fine-tuning takes labelled ones, Exemplar-CNN one
    for each of its classes."""
