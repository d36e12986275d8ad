"""The ladder: length by CPU time, one file that grows, baselines once, no mixing of rules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfsight.data.protocol import Source
from selfsight.errors import TrainingError, UserError
from selfsight.evaluation import ladder as module
from selfsight.evaluation.ladder import encoder_of, flags_of, ladder, whole_epochs
from selfsight.evaluation.protocols import Finding
from selfsight.evaluation.subject import Subject
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]


class Trained:
    """What a stand-in for pretraining returns."""

    def __init__(self, *, finished: bool = True) -> None:
        self.settings = {"resolved": {"batch_size": 64}}
        self.finished = finished


@pytest.fixture
def climb(encoder, pictures: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The ladder over small pictures with a clock that a training moves by two CPU seconds an epoch."""
    clock = {"now": 0.0}
    pair = pictures(60, size=32), pictures(30, size=32, seed=1)
    monkeypatch.setattr(module, "open_splits", lambda data, **kwargs: pair)
    monkeypatch.setattr(module.time, "process_time", lambda: clock["now"])
    solved = Finding({"top1": 0.5}, {"lambda": 1.0})  # the classifier of 3,072 pixels is slow, and tested elsewhere
    monkeypatch.setattr(module, "linear_by_lbfgs", lambda *args: solved)
    subject = Subject(encoder=encoder, plain=plain_view(32, None))
    monkeypatch.setattr(module, "open_subject", lambda run: subject)

    def run(methods: list[str], calls: list[dict[str, Any]], *, fails: str = "", **kwargs: Any) -> dict[str, Any]:
        def train(name: str, **flags: Any) -> Any:
            calls.append({"name": name, **flags})
            if name == fails:
                raise TrainingError("loss is not finite")
            clock["now"] += 2.0 * flags["epochs"]
            return Trained()

        given = {"data": "cifar10", "out": tmp_path / "l.json", "runs": tmp_path, "train": train}
        settings = {"cpu_minutes": 15.0, "threads": 1, "say": lambda text: None}
        return ladder(methods, **{**given, **settings, **kwargs})

    return run


def test_training_fills_the_budget_with_whole_epochs(climb, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    results = climb(["simclr"], calls)
    assert [call["epochs"] for call in calls] == [1, 1, 3, 450]  # 900 CPU seconds at two an epoch
    entry = results["methods"]["simclr"]
    assert (entry["epochs"], entry["cpu_minutes"], entry["encoder"]) == (450, 15.0, "TinyEncoder")
    assert 0 <= entry["knn"] <= 1
    assert entry["linear"] == 0.5
    assert set(results["baselines"]) == {"pixels", "tiny_cnn"}
    assert json.loads((tmp_path / "l.json").read_text()) == results
    assert (calls[1]["limit"], calls[1]["seed"], calls[1]["data"]) == (10_000, 0, "cifar10")


def test_a_method_stands_beside_the_random_encoder_of_its_own_norm(climb) -> None:
    results = climb(["cpc", "simclr"], [])
    assert set(results["baselines"]) == {"pixels", "tiny_cnn", "tiny_cnn, layer norm"}
    assert results["methods"]["cpc"]["encoder"] == "TinyEncoder, layer norm"
    assert results["methods"]["simclr"]["encoder"] == "TinyEncoder"


def test_what_was_measured_is_not_measured_again(climb) -> None:
    first: list[dict[str, Any]] = []
    before = climb(["simclr"], first)
    second: list[dict[str, Any]] = []
    after = climb(["simclr", "byol"], second)
    assert {call["name"] for call in second} == {"byol"}
    assert after["methods"]["simclr"] == before["methods"]["simclr"]
    assert set(after["methods"]) == {"simclr", "byol"}


def test_a_method_that_fails_stops_no_other_and_is_tried_again(climb) -> None:
    results = climb(["simclr", "byol"], [], fails="simclr")
    assert results["methods"]["simclr"]["failed"] == "loss is not finite"
    assert "linear" in results["methods"]["byol"]
    assert "linear" in climb(["simclr", "byol"], [])["methods"]["simclr"]


def test_an_interrupted_training_is_no_result(climb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    climb(["byol"], [])
    monkeypatch.setattr(module, "whole_epochs", lambda one, three, minutes: 5)
    with pytest.raises(KeyboardInterrupt):
        climb(["simclr"], [], train=lambda name, **flags: Trained(finished=flags["epochs"] < 5))
    assert set(json.loads((tmp_path / "l.json").read_text())["methods"]) == {"byol"}


def test_other_rules_are_not_mixed_in(climb) -> None:
    climb(["simclr"], [])
    with pytest.raises(UserError, match=r"measured by other rules \(cpu_minutes 15.0 -> 2.0\)"):
        climb(["byol"], [], cpu_minutes=2.0)


def test_other_data_are_not_mixed_in(climb, pictures: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    climb(["simclr"], [])
    pair = pictures(60, size=32, seed=2), pictures(30, size=32, seed=1)
    monkeypatch.setattr(module, "open_splits", lambda data, **kwargs: pair)
    with pytest.raises(UserError, match=r"measured on other data \(fingerprint .+ -> .+\); give another --out"):
        climb(["byol"], [])


def test_long_epochs_are_timed_by_one(climb) -> None:
    calls: list[dict[str, Any]] = []
    climb(["simclr"], calls, cpu_minutes=0.1)
    assert [call["epochs"] for call in calls] == [1, 1, 3]


def test_overrides_are_used_and_saved(climb) -> None:
    calls: list[dict[str, Any]] = []
    results = climb(["simclr"], calls, overrides={"simclr": {"batch_size": 128}})
    assert calls[-1]["batch_size"] == 128
    assert results["methods"]["simclr"]["flags"]["batch_size"] == 128


def test_an_unknown_method_is_refused_before_any_training(climb) -> None:
    calls: list[dict[str, Any]] = []
    with pytest.raises(UserError, match="unknown method 'simclrr'; did you mean 'simclr'"):
        climb(["byol", "simclrr"], calls)
    assert not calls


def test_transformers_only_where_a_method_needs_tokens() -> None:
    assert {name: encoder_of(name)["backbone"] for name in ("simclr", "mae", "dino")} == {
        "simclr": "tiny_cnn",
        "mae": "vit_tiny_patch16_224",
        "dino": "tiny_cnn",
    }
    assert encoder_of("mae")["patch_size"] == 4


def test_a_short_training_has_an_optimiser_for_it() -> None:
    assert flags_of("simclr") == {"backbone": "tiny_cnn", "optimiser": "adamw", "batch_size": 250, "lr": 4e-3}
    assert flags_of("moco_v3")["lr"] == 4e-3
    assert (flags_of("mae")["batch_size"], flags_of("mae")["lr"]) == (50, 5e-4)
    assert flags_of("byol")["momentum"] == 0.97
    assert "backbone" not in flags_of("localmim_swin")  # the recipe's own for small images, which no flags describe
    assert encoder_of("localmim_swin")["depths"] == (2, 2, 6)
    assert flags_of("rotation") == {"backbone": "tiny_cnn"}


def test_with_labels_the_encoder_is_fine_tuned_beside_one_from_scratch(climb, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int | None]] = []

    def on(share: float) -> Callable[..., Finding]:
        def measure(who: Any, data: Any, how: Any) -> Finding:
            told.append((who.name, share, how.epochs))
            return Finding({"top1": 0.6 if who.name == "trained" else 0.4}, {"epochs": how.epochs})

        return measure

    monkeypatch.setattr(module, "finetune_on", on)
    results = climb(["mae"], [], labels=0.2, tests=10, precision="bf16")
    assert results["data"]["test"] == 10
    epochs = module.TUNED["epochs"]
    assert told == [("scratch", 0.2, epochs), ("trained", 0.2, epochs)]
    assert results["methods"]["mae"]["finetuned"] == 0.6
    assert results["baselines"]["vit_tiny_patch16_224"]["finetuned"] == 0.4
    assert "finetuned" not in results["baselines"]["pixels"]
    with pytest.raises(UserError, match=r"labels 0.2 -> 0.0, tests 10 -> 10000, precision bf16 -> 32\)"):
        climb(["simmim"], [])


def test_what_trains_a_tokenizer_does_not_climb(climb) -> None:
    calls: list[dict[str, Any]] = []
    climb([], calls)
    names = {call["name"] for call in calls}
    assert "beit" in names
    assert "dvae" not in names


def test_two_processes_may_fill_one_file(climb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second measures while the first is at work, and neither loses what the other wrote."""
    monkeypatch.setattr(module, "whole_epochs", lambda one, three, minutes: 5)  # these stand-ins take no time

    def meanwhile(name: str, **flags: Any) -> Any:
        if flags["epochs"] == 1:
            climb(["byol"], [])
        return Trained()

    climb(["byol"], [], fails="byol")  # which the first has read, and must not write again
    results = climb(["simclr"], [], train=meanwhile)
    assert set(results["methods"]) == {"simclr", "byol"}
    assert "linear" in results["methods"]["byol"]
    assert json.loads((tmp_path / "l.json").read_text()) == results


def test_a_slow_method_still_gets_one_epoch() -> None:
    assert whole_epochs(1000.0, 3000.0, 12.0) == 1


def test_what_a_training_takes_besides_its_epochs_is_paid_from_the_budget() -> None:
    assert whole_epochs(10.0 + 5, 30.0 + 5, 1.0) == 5  # ten seconds an epoch, five for the rest
    assert whole_epochs(10.0, 9.0, 1.0) == 6  # noise: at worst an epoch takes all of it


def test_the_table_is_sorted_by_linear_score(climb, capsys: pytest.CaptureFixture[str]) -> None:
    climb(["simclr", "byol"], [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["method", "encoder", "kNN", "linear", "epochs", "CPU", "min"]
    assert len(lines) == 6
    assert "raw pixels" in lines[4]
