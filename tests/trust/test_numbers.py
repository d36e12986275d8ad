"""Numbers that are none: caught where they arise, and losses that make none out of extreme features in half types."""

import csv
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import rig
import torch
from loss_cases import CASES, KINDS, NO_LOSSES, Make, functions, tensors
from promises import Promises
from torch import Tensor, nn

from selfsight import pretraining
from selfsight.engine import loop
from selfsight.engine.diagnosis import diagnose
from selfsight.errors import TrainingError
from selfsight.losses.precision import unit
from selfsight.pretraining import pretrain

QUICK: dict[str, Any] = {
    "data": "world:128",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "batch_size": 16,
    "epochs": 2,
    "precision": "32",
    "probe_every": 0,
    "report": False,
    "save_minutes": 0.0,
    "logger": ("none",),
}
STEPS = 16
CAUGHT = "a loss or gradient that is not finite is caught in its step, left out, and its module named"
KEPT = "a run that cannot go on leaves a good checkpoint, from which it ends like one that never failed"
FITS = "the advice fits what went wrong"


class Spoils(nn.Module):
    """Passes on what it gets; in some steps its output, or the gradient that it hands back, is not finite."""

    def __init__(self, where: str, when: Callable[[], bool]) -> None:
        super().__init__()
        self.where, self.when = where, when

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Spoilt.apply(x, self.where)) if self.when() else x


class _Spoilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: str) -> Tensor:
        ctx.where = where
        return x * float("inf") if where == "value" else x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * float("nan") if ctx.where == "gradient" else grads[0], None


def _fill(when: Callable[[], bool], module: nn.Module, given: object) -> None:
    if when():
        next(module.parameters()).data.fill_(float("nan"))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``spoil(where, first, last)``: a module at the projector's end spoils these steps of the runs that follow."""
    now = {"step": -1}
    reseed, settle = loop._reseed, pretraining.settle

    def note(seed: int, step: int, *place: int) -> None:
        now["step"] = step
        reseed(seed, step, *place)

    def set_up(where: str, first: int = 0, last: int = STEPS) -> None:
        def put(assembly: Any, machine: Any, **options: Any) -> None:
            method = assembly.recipe.method
            when = lambda: method.training and first <= now["step"] <= last  # noqa: E731
            if where == "loss":
                whole = method.loss
                method.loss = lambda *a, **k: whole(*a, **k) * (float("inf") if when() else 1.0)
            elif where == "weight":
                method.projector.register_forward_pre_hook(partial(_fill, when))
            else:
                method.projector.append(Spoils(where, when))
            settle(assembly, machine, **options)

        monkeypatch.setattr(loop, "_reseed", note)
        monkeypatch.setattr(pretraining, "settle", put)

    return set_up


def alarms(run: Path) -> list[dict[str, str]]:
    with open(run / "alarms.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


NAMED = {
    "value": "what projector.8 (Spoils) gives",
    "gradient": "the gradient in projector.8 (Spoils)",
    "loss": "the loss, of features that are finite",
}


@pytest.mark.parametrize("where", NAMED)
def test_one_bad_step_is_left_out_and_said(
    where: str, spoil: Callable[..., None], promise: Promises, tmp_path: Path
) -> None:
    spoil(where, 5, 5)
    run = pretrain("simclr", **QUICK, out=tmp_path / "run")
    caught, fits = promise(CAUGHT), promise(FITS)
    (row,) = [row for row in alarms(run.path) if row["name"] == "not_finite"]
    caught(row["step"] == "5", f"{where}: step {row['step']}")
    caught(NAMED[where] in row["cause"], f"{where}: {row['cause']}")
    fits("lower --lr" in row["advice"], f"{where}: {row['advice']}")
    whole = state(run.path)["method"]
    caught(all(bool(x.isfinite().all()) for x in whole.values()), f"{where}: weights")
    caught(state(run.path)["step"] == STEPS, f"{where}: the run goes on")


@pytest.mark.parametrize("where", [*NAMED, "weight"])
def test_bad_steps_without_end_end_the_run(
    where: str, spoil: Callable[..., None], promise: Promises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(where, 5)
    caught, kept = promise(CAUGHT), promise(KEPT)
    with pytest.raises(TrainingError) as raised:
        pretrain("simclr", **QUICK, out=tmp_path / "run")
    said = str(raised.value)
    named = {**NAMED, "weight": "the weights projector.0.weight"}[where]
    steps = "step 5:" if where == "weight" else "steps 5 to 14:"  # at once where nothing good can follow
    caught(said.startswith(f"{steps} not finite: {named} (loss "), said)
    kept("the last good checkpoint is kept" in said, said)
    saved = state(tmp_path / "run")
    kept(all(bool(x.isfinite().all()) for x in saved["method"].values()), f"{where}: finite")

    monkeypatch.undo()  # what spoiled is gone
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "cache"))
    if where == "weight":
        pretrain("simclr", **QUICK, out=tmp_path / "run", resume=True)
        pretrain("simclr", **QUICK, out=tmp_path / "whole")
        resumed, whole = state(tmp_path / "run")["method"], state(tmp_path / "whole")["method"]
        kept(all(torch.equal(resumed[key], whole[key]) for key in whole), f"{where}: resumed")


def test_a_rate_that_is_far_too_high_is_named_before_anything_is_saved(promise: Promises, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as raised:
        pretrain("simclr", **{**QUICK, "save_minutes": 5.0}, lr=1e38, out=tmp_path / "run")
    said = str(raised.value)
    fits = promise(FITS)
    fits("nothing was saved yet" in said, said)
    fits("lower --lr in a new run" in said, said)
    fits(not (tmp_path / "run" / "checkpoints" / "last.pt").exists(), "a checkpoint of nothing good")


@pytest.mark.parametrize("limit", ["0.01s", None])
def test_a_run_that_ends_before_it_looked_does_not_say_that_it_saved(
    limit: str | None, spoil: Callable[..., None], promise: Promises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, which is not asked before each update: here the CPU is not asked either."""

    class Unasked(loop.Updater):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.looks = False

    monkeypatch.setattr(loop, "Updater", Unasked)
    spoil("value", 0, 0)
    said: list[str] = []
    with pytest.raises(TrainingError) as raised:
        pretrain("simclr", **QUICK, log_every=20, max_time=limit, out=tmp_path / "run", say=said.append)
    kept = promise(KEPT)
    kept("step 0: not finite" in str(raised.value), str(raised.value))
    kept(not any("saved" in line for line in said), str(said))
    kept(not (tmp_path / "run" / "checkpoints" / "last.pt").exists(), "a checkpoint of nothing good")


def test_images_and_half_precision_get_their_own_advice(promise: Promises) -> None:
    fits = promise(FITS)

    def found(place: Any, spoil: Callable[[Any, Any], object]) -> tuple[str, str]:
        recipe = rig.build("simsiam")
        (batch,) = rig.batches(recipe, 1, size=8)
        spoil(recipe.method, batch)
        one = diagnose(recipe.method, batch, rig.clock(5, 10), place, {"main": list(recipe.method.parameters())})
        return one.where.replace(str(int(batch.index[3])), "THREE"), one.advice

    where, advice = found(rig.machine(), lambda method, batch: batch.x2[3, 0, 1, 1].fill_(float("nan")))
    fits(where == "the views of the images at positions THREE", where)
    fits("mend or remove them" in advice, advice)
    last = Spoils("value", lambda: True)
    where, advice = found(rig.machine(bf16=True), lambda method, batch: method.predictor.append(last))
    fits(where.endswith("(Spoils) gives"), where)
    fits("--resume --precision 32" in advice, advice)


def called(name: str, make: Make) -> tuple[list[Tensor], list[Tensor]]:
    """What a loss gives, and the gradients of its sum."""
    out = list(tensors(CASES[name](make)))
    summed = [x.sum() for x in out if x.requires_grad]
    if summed:
        torch.stack(summed).sum().backward()
    return [x.detach() for x in out], [x.grad for x in make.made if x.grad is not None]


def apart(x: Tensor, y: Tensor, floor: float) -> float:
    """The greatest difference, as a part of the greatest number; of what the type of ``x`` can hold."""
    held = y.to(x.dtype).isfinite()
    x, y = torch.where(held, x, 0.0).double(), torch.where(held, y, 0.0)
    return float((x - y).abs().max() / y.abs().max().clamp_min(floor)) if x.isfinite().all() else float("inf")


def test_no_loss_is_forgotten() -> None:
    assert functions() == CASES.keys() | NO_LOSSES.keys()
    assert not CASES.keys() & NO_LOSSES.keys()


def test_a_vector_of_zero_gets_no_gradient_and_what_is_no_number_stays_none() -> None:
    z = torch.zeros(2, 4, requires_grad=True)
    unit(z, dim=1).sum().backward()
    assert z.grad is not None
    assert not z.grad.any(), "torch's normalize hands on 10^12 times what comes in"
    assert unit(torch.tensor([[float("nan"), 1.0]]), dim=1).isnan().all()


@pytest.mark.parametrize("name", CASES)
def test_losses_of_extreme_features_in_half_types(name: str, promise: Promises) -> None:
    finite = promise("losses of extreme bf16 and fp16 features are finite, and gradients where the type can hold them")
    exact = promise("losses of extreme bf16 and fp16 features and their gradients are those of float64")
    for half, kind, b in product((torch.bfloat16, torch.float16), KINDS, (2, 6)):
        case = f"{name} of {b} {kind} rows in {str(half).removeprefix('torch.')}"
        values, grads = called(name, Make(b, kind, half))
        wide, slopes = called(name, Make(b, kind, half, double=True))
        finite(all(bool(x.isfinite().all()) for x in values), case)
        finite(
            all(bool((x.isfinite() | ~y.to(half).isfinite()).all()) for x, y in zip(grads, slopes, strict=True)), case
        )
        exact(all(x.dtype == torch.float32 for x in values if x.is_floating_point()), f"{case}: type")
        exact(all(apart(x, y, 0.1) < 1e-3 for x, y in zip(values, wide, strict=True)), case)
        # where all candidates are alike, a gradient of zero is a difference of numbers near 1 / COLD
        floor = 1e-3 if kind == "random" else 1.0
        exact(all(apart(x, y, floor) < 2e-2 for x, y in zip(grads, slopes, strict=True)), f"the gradient of {case}")
