"""Scaling: equal updates for any share of the data, both losses, one file that grows, pictures of what is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rig
import torch
from PIL import Image

from selfsight.data.protocol import Source
from selfsight.data.world import World
from selfsight.engine.run import OpenRun
from selfsight.errors import TrainingError, UserError
from selfsight.evaluation import scaling as module
from selfsight.evaluation.protocols import Finding
from selfsight.evaluation.scaling import Rules, lengths, pretraining_loss, scaling
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import Subject
from selfsight.keyed import Key
from selfsight.method import Clock
from selfsight.report.scaling import panels, write_pictures
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]
NOW = Clock(step=9, steps=10, epoch=1, epochs=2)


class Trained(OpenRun):
    """What a stand-in for pretraining returns."""

    def __init__(self, images: int, *, stopped: bool) -> None:
        self.images, self.stopped = images, stopped

    @property
    def finished(self) -> bool:
        return not self.stopped


@pytest.fixture
def grow(encoder, pictures: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Scaling over small pictures, with trainings that take no time and losses that fall with the images."""
    pair = pictures(200), pictures(30, seed=1)
    monkeypatch.setattr(module, "open_splits", lambda data, **kwargs: pair)
    monkeypatch.setattr(module, "open_subject", lambda run: Subject(encoder=encoder, plain=plain_view(16, None)))
    measured = {"knn": lambda who, data, how: Finding({"top1": 0.5 if who.name == "trained" else 0.25}, {})}
    monkeypatch.setattr(module, "MEASURES", measured)
    losses = {"loss": 1, "held_out_loss": 2}
    found = lambda run, *_: {name: round(0.4 + by / run.images, 4) for name, by in losses.items()}  # noqa: E731
    monkeypatch.setattr(module, "_losses", found)

    def run(
        calls: list[dict[str, Any]], *, fails: str = "", stopped: bool = False, drawn: bool = False, **given: Any
    ) -> dict[str, Any]:
        monkeypatch.setattr(module, "write_pictures", write_pictures if drawn else lambda results, out: None)

        def train(name: str, **flags: Any) -> Any:
            calls.append({"name": name, **flags})
            if flags["backbone"] == fails:
                raise TrainingError("loss is not finite")
            return Trained(flags["limit"], stopped=stopped)

        rules = Rules(
            **{"data": "any", "updates": 20, "batch_size": 16, "protocols": ("knn",), **given.pop("rules", {})}
        )
        how = {"out": tmp_path, "sizes": ["small", "large"], "fractions": [0.1, 1.0], "say": lambda text: None}
        return scaling(rules, train=train, **{**how, **given})

    return run


def test_every_size_is_trained_on_every_share_for_as_many_updates(grow, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    results = grow(calls)
    assert [(c["backbone"], c["limit"], c["epochs"], c["batch_size"]) for c in calls] == [
        ("small", 20, 20, 16),
        ("small", 200, 2, 16),
        ("large", 20, 20, 16),
        ("large", 200, 2, 16),
    ]
    assert {(c["name"], c["optimiser"], c["lr"], c["patch_size"]) for c in calls} == {("mae", "adamw", 1e-3, 4)}
    assert all("normalise_target" not in c for c in calls)
    point = results["points"]["large 0.1"]
    assert (point["images"], point["updates"], point["loss"], point["held_out_loss"]) == (20, 20, 0.45, 0.5)
    assert point["accuracy"] == {"knn": 0.5}
    assert results["baselines"]["pixels"] == {"accuracy": {"knn": 0.25}}
    assert results["baselines"]["small"] == {"parameters": 408, "accuracy": {"knn": 0.25}}
    assert json.loads((tmp_path / "scaling.json").read_text()) == results


@pytest.mark.parametrize("images", [64, 250, 1250, 5000])
def test_updates_are_as_many_as_whole_epochs_make(images: int) -> None:
    batch, epochs = lengths(images, Rules(updates=150))
    assert epochs * (images // batch) == pytest.approx(150, rel=0.05)


def test_on_the_world_pixels_are_not_normalised_and_any_flag_may_be_given(grow) -> None:
    calls: list[dict[str, Any]] = []
    grow(calls, rules={"data": "world", "flags": {"mask_ratio": 0.5}}, sizes=["small"])
    assert {(c["normalise_target"], c["mask_ratio"]) for c in calls} == {(False, 0.5)}


def test_what_was_measured_is_not_measured_again_and_more_may_be_asked(grow) -> None:
    before = grow([], sizes=["small"])
    calls: list[dict[str, Any]] = []
    after = grow(calls, fractions=[0.1, 0.5, 1.0])
    assert [(c["backbone"], c["limit"]) for c in calls] == [
        ("small", 100),
        ("large", 20),
        ("large", 100),
        ("large", 200),
    ]
    assert all(after["points"][name] == point for name, point in before["points"].items())


def test_a_training_that_fails_stops_no_other_and_is_tried_again(grow) -> None:
    assert grow([], fails="small")["points"]["small 1"]["failed"] == "loss is not finite"
    calls: list[dict[str, Any]] = []
    assert "accuracy" in grow(calls)["points"]["small 1"]
    assert {c["backbone"] for c in calls} == {"small"}


def test_a_stopped_training_is_no_result_and_goes_on(grow, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        grow([], stopped=True)
    kept = tmp_path / "runs" / "small-0.1" / "checkpoints"
    kept.mkdir(parents=True)
    (kept / "last.pt").touch()
    calls: list[dict[str, Any]] = []
    grow(calls)
    assert [c.get("resume") for c in calls] == [True, None, None, None]


def test_other_rules_are_not_mixed_in(grow) -> None:
    grow([], sizes=["small"])
    with pytest.raises(UserError, match=r"measured by other rules \(updates 20 -> 30, batch_size 16 -> 8\)"):
        grow([], rules={"updates": 30, "batch_size": 8})


def test_wrong_calls_are_refused_before_any_training(grow) -> None:
    calls: list[dict[str, Any]] = []
    with pytest.raises(UserError, match="unknown method 'mea'"):
        grow(calls, rules={"method": "mea"})
    with pytest.raises(UserError, match=r"a fraction of the data is 1\.5; it must lie above 0"):
        grow(calls, fractions=[1.5])
    with pytest.raises(UserError, match="unknown protocol 'knm'; did you mean 'knn'"):
        grow(calls, rules={"protocols": ("knm",)})
    assert not calls


def test_the_pictures_show_every_point(grow, tmp_path: Path) -> None:
    results = grow([], drawn=True)
    drawn = dict[str, Any]()
    for _, panel in panels(results):
        drawn[panel.title] = {line.name: (list(line.x), list(line.y)) for line in panel.lines}
    over_data = drawn["Pretraining loss over data"]
    assert over_data["small"] == ([20, 200], [0.45, 0.405])
    assert over_data["small, held out"] == ([20, 200], pytest.approx([0.5, 0.41]))
    assert drawn["Pretraining loss over size"]["10 %"] == ([408, 408], [0.45, 0.45])
    assert drawn["Accuracy over data"]["large"] == ([20, 200], [0.5, 0.5])
    assert drawn["Accuracy over data"]["large at random"] == ([20, 200], [0.25, 0.25])
    assert drawn["Accuracy over held-out loss"]["small"] == ([0.5, 0.41], [0.5, 0.5])
    inks = {panel.title: {line.colour for line in panel.lines if line.dash == "solid"} for _, panel in panels(results)}
    assert not inks["Pretraining loss over data"] & inks["Pretraining loss over size"]
    with Image.open(tmp_path / "scaling.png") as picture:
        assert picture.size == (2400, 1160)
        assert len(picture.getcolors(2**24) or ()) > 20
    page = (tmp_path / "scaling.html").read_text()
    assert page.count('class="plotly-graph-div"') == 5
    assert "<script src" not in page


def test_a_results_file_without_a_point_is_drawn_too(grow, tmp_path: Path) -> None:
    grow([], fails="small", sizes=["small"], fractions=[1.0], drawn=True)
    assert (tmp_path / "scaling.png").exists()


def test_the_table_says_both_losses(grow, capsys: pytest.CaptureFixture[str]) -> None:
    grow([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["encoder", "images", "loss", "held", "out", "knn"]
    assert lines[2].split() == ["small", "20", "0.45", "0.5", "50.0", "%"]
    assert any(line.startswith("raw pixels") for line in lines)


class Opened(OpenRun):
    """A run that was opened."""

    def __init__(self, recipe: Any) -> None:
        self.path, self.made = Path("run"), recipe

    def recipe(self, which: str = "last") -> Any:
        return self.made


def test_the_loss_is_the_methods_own_and_changes_nothing() -> None:
    recipe = rig.build("mae")
    recipe.method.train()
    kept = {name: value.clone() for name, value in recipe.method.state_dict().items()}
    source, how = World(40, size=32, split="test"), {"clock": NOW, "batch": 16, "seed": 7, "place": Place()}
    found = pretraining_loss(Opened(recipe), source, **how)
    assert found == pretraining_loss(Opened(recipe), source, **how)
    other = pretraining_loss(Opened(recipe), source, **{**how, "seed": 8})
    assert other != found  # other masks
    assert all(torch.equal(value, kept[name]) for name, value in recipe.method.state_dict().items())
    assert all(p.grad is None for p in recipe.method.parameters())


def test_the_loss_is_the_mean_over_whole_batches() -> None:
    recipe = rig.build("mae")
    source = World(16, size=32, split="test")
    found = pretraining_loss(Opened(recipe), source, clock=NOW, batch=64, seed=7, place=Place())
    images = torch.from_numpy(np.stack([np.asarray(x) for x in source.read_many(np.arange(16))]))
    key = Key(7, torch.zeros(16, dtype=torch.long), torch.arange(16))
    with torch.no_grad():
        objective = next(recipe.method.step(recipe.views.render(images, recipe.views.plan(key), key), NOW))
    assert found == pytest.approx(objective.loss.item(), rel=1e-5)


def test_a_method_without_its_tokenizer_is_refused_in_one_line() -> None:
    recipe = rig.build("beit")
    recipe.method._tokenizer = (None,)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="run: the loss cannot be measured: this run was opened without its tokenizer"):
        pretraining_loss(Opened(recipe), World(8, size=32, split="test"), clock=NOW, batch=8, seed=0, place=Place())


@pytest.mark.slow
def test_real_trainings_are_measured_once(tmp_path: Path) -> None:
    rules = Rules(data="world:64", updates=4, batch_size=16, held=32, protocols=("knn",), flags={"threads": 1})
    how: dict[str, Any] = {"out": tmp_path, "sizes": ["test_vit"], "fractions": [0.5, 1.0], "say": lambda text: None}
    results = scaling(rules, **how)
    points = results["points"]
    assert {name: (p["images"], p["updates"]) for name, p in points.items()} == {
        "test_vit 0.5": (32, 4),
        "test_vit 1": (64, 4),
    }
    assert all(0 < p["loss"] < 3 and 0 < p["held_out_loss"] < 3 for p in points.values())
    assert all(p["loss"] != p["held_out_loss"] for p in points.values())
    (tmp_path / "scaling.json").unlink()  # the trainings are done all the same
    again = scaling(rules, train=lambda *_, **flags: pytest.fail("trained again"), **how)["points"]
    assert [(p["loss"], p["accuracy"]) for p in again.values()] == [(p["loss"], p["accuracy"]) for p in points.values()]
