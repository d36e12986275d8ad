"""The engine's side of a ``yield``: backward, averaging, holding, clipping and stepping."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfsight.engine.machine import Machine, average_gradients_
from selfsight.engine.optimisers import build_optimiser, clip_, set_rates_
from selfsight.errors import TrainingError
from selfsight.method import Clock, Objective
from selfsight.recipes.recipe import Recipe

GIVE_UP = 10
"""Updates in a row with a non-finite gradient after which a run stops."""

LEAST_SCALE = 2.0**-20
"""The gradient scaler starts at 2^16 and halves at each overflow: below this no gradient is finite at all."""


class Updater:
    """Gives each objective's optimisers their step: the engine's side of a ``yield``.

    An update whose loss or gradient is not finite is left out and ``failed``. A GPU is asked before each update only
    where ``looks`` is true, since asking waits for it; else it remembers the first step that was not finite.
    """

    def __init__(self, recipe: Recipe, machine: Machine, accumulate: int, *, looks: bool = False) -> None:
        self.specs, self.machine, self.accumulate = recipe.optimisers, machine, accumulate
        named = {name: list(parameters) for name, parameters in recipe.method.trainables().items()}
        if named.keys() != self.specs.keys():
            raise ValueError(f"the method trains {sorted(named)} but the recipe has optimisers {sorted(self.specs)}")
        self.parameters = {name: [p for _, p in pairs] for name, pairs in named.items()}
        self.optimisers = {name: build_optimiser(self.specs[name], pairs) for name, pairs in named.items()}
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "16")
        self.looks = looks or machine.device.type == "cpu"
        self.norm = torch.zeros(())
        self.losses: dict[tuple[str, ...], Tensor] = {}
        self.good = torch.ones((), dtype=torch.bool, device=machine.device)
        self.first_bad = torch.full((), -1, device=machine.device)
        self.failed, self.in_a_row = False, 0  # the updates before this one that were left out
        self.begun: set[str] = set()

    def begin(self, clock: Clock, *, first: bool, last: bool) -> None:
        """Called before each micro-batch."""
        self.clock, self.first, self.last = clock, first, last
        self.begun.clear()
        if first:
            self.in_a_row = self.in_a_row + 1 if self.failed else 0
            self.failed = False
            self.losses.clear()

    def __call__(self, objective: Objective) -> bool:
        parameters = [p for name in objective.by for p in self.parameters[name]]
        if self.accumulate > 1 and self.begun & set(objective.by):
            raise TrainingError("this method steps one optimiser twice a batch, which --accumulate cannot split")
        self.begun |= set(objective.by)
        if self.first:
            for name in objective.by:
                self.optimisers[name].zero_grad(set_to_none=True)
        loss = objective.loss / self.accumulate
        torch.autograd.backward(self.scaler.scale(loss), inputs=parameters)
        whole = loss.detach().clone() + self.losses.get(objective.by, 0.0)
        self.losses[objective.by] = whole
        if not self.last:
            return False
        if self.machine.world > 1:
            average_gradients_(parameters, whole)
        for held in objective.hold:
            held.grad = None
        scale = self.scaler.get_scale()  # the same for all: it may change once an objective, after the last has stepped
        moves = [self._step(name, whole) for name in objective.by]  # every one steps, whatever the others did
        self.scaler.update()
        return all(moves) and self.scaler.get_scale() >= scale

    def _step(self, name: str, loss: Tensor) -> bool:
        optimiser, spec = self.optimisers[name], self.specs[name]
        set_rates_(optimiser, spec, self.clock)
        self.scaler.unscale_(optimiser)
        self.norm = clip_(self.parameters[name], spec)
        self.good = torch.isfinite(self.norm) & torch.isfinite(loss)  # of all processes' means: all see the same
        if self.looks and not self.sound():
            self.failed = True
            return False
        if not self.looks:
            self.first_bad = torch.where(self.good | (self.first_bad >= 0), self.first_bad, self.clock.step)
        self.scaler.step(optimiser)
        return True

    def sound(self) -> bool:
        """Whether loss and gradient are finite, on every process alike. On a GPU asking waits for it.

        Under a gradient scaler overflows are part of the game and never reach the weights, until the scale has
        shrunk to nothing.
        """
        if self.scaler.is_enabled():
            return self.scaler.get_scale() > LEAST_SCALE
        return bool(self.good) if self.looks else int(self.first_bad) < 0

    def refuse(self) -> None:
        """Ends a run on a GPU that was not asked before each update: where it was not sound, its weights are lost."""
        if not self.looks and not self.sound():
            if self.scaler.is_enabled():
                what, remedy = f"no gradient is finite at step {self.clock.step}", "--resume --precision 32"
            else:
                what = f"step {int(self.first_bad)}: not finite: the loss or its gradient"
                remedy = "--resume --log-every 1, which looks before each update and says in which module"
            raise TrainingError(f"{what}; the last checkpoint is good: go on by {remedy}")

    def rates(self) -> dict[str, float]:
        """Learning rate and weight decay of the first optimiser, and its last gradient norm."""
        spec = next(iter(self.specs.values()))
        return {"lr": spec.lr(self.clock), "weight_decay": spec.weight_decay(self.clock), "grad_norm": float(self.norm)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        return {"optimisers": kept, "scaler": self.scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.scaler.load_state_dict(state["scaler"])
