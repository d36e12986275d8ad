"""The contract: a method's training step is a generator of objectives.

What stands before a ``yield`` is the forward pass; ``yield Objective(loss)`` hands the loss to whatever loop drives the
method; what stands after it sees the updated weights. See ``docs/architecture.md``, section 2.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.encoders.protocol import Encoder

B = TypeVar("B")
Watched = Literal["feature", "projection", "teacher", "assignment"]


@dataclass(frozen=True)
class Clock:
    """The only notion of time a method sees: update ``step`` of ``steps`` in ``epoch`` of ``epochs``, from 0."""

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 at the first update and below 1 at the last."""
        return self.step / max(self.steps, 1)

    @property
    def steps_per_epoch(self) -> float:
        return self.steps / max(self.epochs, 1)


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss, handed over to the engine.

    ``by`` names the optimisers that step on it; ``hold`` the parameters left out of this one update (SwAV's frozen
    prototypes, DINO's last layer); ``log`` what is written beside the loss; ``watch`` what the monitors may look at:
    detached, it never changes the step.
    """

    loss: Float[Tensor, ""]
    by: tuple[str, ...] = ("main",)
    hold: tuple[nn.Parameter, ...] = ()
    log: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    watch: Mapping[Watched, Tensor] = field(default_factory=dict[Watched, Tensor])


Steps = Generator[Objective, bool, None]
Schedule = Callable[[Clock], float]


class Method(nn.Module, ABC, Generic[B]):
    """A self-supervised method: its modules, its memory, its hyper-parameters and the order of events in a step."""

    encoder: Encoder
    """What is kept and evaluated."""
    by_index: ClassVar[bool] = False
    """Whether it knows its training images one by one, as classes or in a memory: then it has no loss for others."""

    @abstractmethod
    def step(self, batch: B, clock: Clock) -> Steps:
        """One training step on ``batch``: yields objectives, is sent whether an optimiser really moved."""

    def trainables(self) -> Mapping[str, Iterable[tuple[str, nn.Parameter]]]:
        """The named parameters of each optimiser; unless overridden, ``main`` has all that require gradients."""
        return {"main": [(name, p) for name, p in self.named_parameters() if p.requires_grad]}

    def before_epoch(self, sweep: Callable[[], Iterator[Images]], clock: Clock) -> None:
        """Called before each epoch. ``sweep()`` yields this rank's shard of the data in plain evaluation views.

        Results belong into buffers: after a resume in mid-epoch this is not run again.
        """
        return


def drive(
    steps: Steps,
    update: Callable[[Objective], bool],
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Run one step of a method in any loop: hand each objective to ``update``, send back whether it moved weights.

    ``around`` is entered for the method's own code only, never for ``update``: it is where autocast goes.
    """
    moved = None
    while True:
        with around():
            try:
                objective = next(steps) if moved is None else steps.send(moved)
            except StopIteration:
                return
        moved = update(objective)
