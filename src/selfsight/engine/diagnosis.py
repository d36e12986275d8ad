"""Where a loss or a gradient stopped being finite: the step that failed is made again, watched module by module."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfsight.engine.machine import Machine
from selfsight.engine.optimisers import gradient
from selfsight.method import Clock, Method, Objective, drive


class Finding(NamedTuple):
    """Where it arose, and what to do; the smaller ``order``, the nearer to the cause.

    ``lasts``: a weight or a buffer is not finite, so no later step can be good.
    """

    order: int
    where: str
    advice: str
    lasts: bool = False


def diagnose(
    method: Method[Any], batch: Any, clock: Clock, machine: Machine, parameters: Mapping[str, Sequence[nn.Parameter]]
) -> Finding:
    """Makes a step that failed again, without moving any weight; all processes call it, and all get one answer.

    ``parameters`` are those of each optimiser. Their gradients are gone afterwards.
    """
    remedy = "lower --lr in a new run, where --init-from takes over what this one had learnt at its last checkpoint"
    if machine.precision != "32":
        remedy = f"{machine.precision} may be too coarse here: go on by --resume --precision 32"
    found: list[Finding] = []
    if weights := _bad(method.named_parameters()):
        found.append(Finding(0, f"the weights {weights}", remedy))
    if not all(map(is_finite, _tensors(batch))):
        advice = "they hold numbers that are none: mend or remove them"
        found.append(Finding(1, f"the views of the images at positions {_positions(batch)}", advice))
    calls = _Calls(method)

    def look(objective: Objective) -> bool:
        trained = [p for name in objective.by for p in parameters[name]]
        torch.autograd.backward(objective.loss, inputs=trained)
        if forward := next((call for call in calls.ended if call.spoils_values), None):
            found.append(Finding(2, f"what {forward.name} gives", remedy))
        elif memory := _bad(method.named_buffers()):
            found.append(Finding(3, f"what is remembered in {memory}", "go on from the last checkpoint by --resume"))
        elif not is_finite(objective.loss):
            found.append(Finding(4, "the loss, of features that are finite", remedy))
        elif back := max((call for call in calls.ended if call.spoils_gradients), key=_began, default=None):
            found.append(Finding(5, f"the gradient in {back.name}", remedy))
        elif any(not is_finite(grad) for grad in map(gradient, trained) if grad is not None):
            found.append(Finding(6, "the gradient of the loss", remedy))
        method.zero_grad(set_to_none=True)
        calls.ended.clear()
        return False

    method.zero_grad(set_to_none=True)
    drive(method.step(batch, clock), look, machine.autocast)  # to its end: it may wait for the others anywhere
    calls.close()
    found.append(Finding(9, "an earlier micro-batch of the update", remedy))
    lasts = bool(_bad(method.named_parameters()) or _bad(method.named_buffers()))
    seen: list[Any] = [(min(found), lasts)] * machine.world
    if machine.world > 1:
        dist.all_gather_object(seen, seen[0])
    return min(each for each, _ in seen)._replace(lasts=any(lasting for _, lasting in seen))


def is_finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(x.detach().isfinite().all())


@dataclass(eq=False)
class _Call:
    """One call of a module: whether its values and their gradients were finite before and behind it."""

    name: str
    module: nn.Module
    began: int
    good_inputs: bool
    good_outputs: bool = True
    behind: list[bool] = field(default_factory=list[bool])
    before: list[bool] = field(default_factory=list[bool])

    @property
    def spoils_values(self) -> bool:
        return self.good_inputs and not self.good_outputs

    @property
    def spoils_gradients(self) -> bool:
        own = (gradient(p) for p in self.module.parameters(recurse=False))
        good = all(self.before) and all(is_finite(grad) for grad in own if grad is not None)
        return bool(self.behind) and all(self.behind) and not good


def _began(call: _Call) -> int:
    return call.began


class _Calls:
    """The calls of all modules in the order in which they ended: the inner ones before those around them."""

    def __init__(self, method: nn.Module) -> None:
        self.open: list[_Call] = []
        self.ended: list[_Call] = []
        self.count = 0
        self.hooks = []
        for name, module in method.named_modules():
            if name:
                named = f"{name} ({type(module).__name__})"
                self.hooks.append(module.register_forward_pre_hook(partial(self._begin, named)))
                self.hooks.append(module.register_forward_hook(self._end))

    def _begin(self, name: str, module: nn.Module, given: Any) -> None:
        self.count += 1
        call = _Call(name, module, self.count, all(map(is_finite, _tensors(given))))
        for x in _tensors(given):
            if x.requires_grad:
                x.register_hook(partial(_note, call.before))
        self.open.append(call)

    def _end(self, module: nn.Module, given: Any, out: Any) -> None:
        call = self.open.pop()
        call.good_outputs = all(map(is_finite, _tensors(out)))
        for x in _tensors(out):
            if x.requires_grad:
                x.register_hook(partial(_note, call.behind))
        self.ended.append(call)

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _note(kept: list[bool], grad: Tensor) -> None:
    kept.append(is_finite(grad))


def _tensors(x: Any) -> Iterator[Tensor]:
    """The tensors in a batch, or in what a module takes or gives."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping):
        yield from _tensors(tuple(x.values()))
    elif isinstance(x, tuple | list):
        for part in x:
            yield from _tensors(part)


def _positions(batch: Any) -> str:
    rows = [x for x in _tensors(batch) if x.is_floating_point() and x.ndim and len(x) == len(batch.index)]
    bad = {int(i) for x in rows for i in batch.index[~x.flatten(1).isfinite().all(dim=1)]}
    return _some(sorted(map(str, bad))) or "of this batch"


def _bad(named: Iterator[tuple[str, Tensor]]) -> str:
    return _some([name for name, x in named if not is_finite(x)])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
