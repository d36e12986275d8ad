"""evaluate: every score beside its baselines, what is saved, and what a wrong call is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from selfsight.data.protocol import Source
from selfsight.engine.run import OpenRun
from selfsight.errors import UserError
from selfsight.evaluation import evaluate as module
from selfsight.evaluation.evaluate import evaluate, resolve_protocols, save
from selfsight.evaluation.features import extract
from selfsight.evaluation.knn import knn_accuracy
from selfsight.evaluation.subject import open_subject
from selfsight.evaluation.table import show_table
from selfsight.flags import Flags
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]


class Run(OpenRun):
    """A run's folder without a training behind it."""

    def __init__(self, path: Path, encoder: nn.Module) -> None:
        self.path, self.flags, self._encoder = path, Flags(data="world"), encoder
        self.settings = {"method": "mae", "flags": {}, "resolved": {"epochs": 3, "image_size": 16}}

    def encoder(self, which: str = "last") -> Any:
        assert which == "last"
        return self._encoder


@pytest.fixture
def split(pictures: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[Source, Source]:
    """Train and test that any ``data`` opens."""
    pair = pictures(60), pictures(40, seed=1)
    monkeypatch.setattr("selfsight.evaluation.subject.open_splits", lambda spec, **kwargs: pair)
    return pair


def test_each_score_stands_beside_both_baselines(encoder, split) -> None:
    plain = plain_view(16, None)
    results = evaluate(encoder, data="any", protocols=("knn", "linear"), k=5, plain=plain, quiet=True)
    assert list(results) == ["knn", "linear-lbfgs"]
    for result in results.values():
        assert set(result["baselines"]) == {"random", "pixels"}
        for numbers in (result["scores"], *result["baselines"].values()):
            assert 0 <= numbers["top1"] <= 1
            assert numbers["samples"] == 40
    train, test = (extract(encoder, source, plain) for source in split)
    assert results["knn"]["scores"]["top1"] == knn_accuracy(train, test, k=5)
    assert results["knn"]["settings"]["k"] == 5
    assert results["knn"]["settings"]["temperature"] == 0.07
    assert results["linear-lbfgs"]["settings"]["lambda"] > 0


def test_the_pixels_baseline_is_of_pixels_at_32(encoder, split) -> None:
    result = evaluate(encoder, data="any", protocols=["knn"], k=3, quiet=True)["knn"]
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def seen(source: Source) -> torch.Tensor:
        images = torch.stack([torch.from_numpy(source.read(i)) for i in range(len(source))]).float() / 255
        return ((nn.functional.interpolate(images, (32, 32), mode="bilinear") - mean) / std).flatten(1)

    train, test = (seen(source) for source in split)
    cosines = nn.functional.normalize(test) @ nn.functional.normalize(train).T
    top, where = cosines.topk(3)
    votes = torch.zeros(len(test), 4)
    votes.scatter_add_(1, torch.from_numpy(np.asarray(split[0].labels))[where], (top / 0.07).exp())
    expected = (votes.argmax(1).numpy() == split[1].labels).mean()
    assert result["baselines"]["pixels"]["top1"] == pytest.approx(expected, abs=0.026)  # one image of 40


def test_a_run_keeps_its_results_as_json(encoder, split, tmp_path: Path) -> None:
    run = Run(tmp_path, encoder)
    results = evaluate(run, protocols=["knn", "quality"], plain=plain_view(16, None), quiet=True)
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "evaluation").iterdir()}
    assert files == {"knn.json": results["knn"], "quality.json": results["quality"]}
    saved = files["knn.json"]
    assert saved["method"] == "mae"
    assert (saved["data"]["train"], saved["data"]["test"], saved["data"]["classes"]) == (60, 40, 4)
    assert saved["data"]["fingerprint"] == split[0].fingerprint
    assert saved["seed"] == 0
    assert saved["selfsight"]
    assert saved["seconds"] >= 0


def test_quality_needs_no_labels(encoder, split) -> None:
    for source in split:
        source.labels = None
    result = evaluate(encoder, data="any", protocols=["quality"], quiet=True)["quality"]
    assert set(result["quality"]) == {"trained", "random"}
    numbers = result["quality"]["trained"]
    assert 1 <= numbers["effective_rank"] <= 32.01
    assert 0 < numbers["alignment"] < 2
    assert numbers["uniformity"] < 0
    assert numbers["samples"] == 60


def test_data_without_labels_say_what_to_do(encoder, split) -> None:
    split[0].labels = None
    with pytest.raises(
        UserError, match=r"pictures has no labels, which knn needs; give --labels .* --protocol quality"
    ):
        evaluate(encoder, data="any", quiet=True)


def test_images_without_label_are_left_out(encoder, split) -> None:
    split[0].labels = np.where(np.arange(60) < 30, split[0].labels, -1)
    result = evaluate(encoder, data="any", protocols=["knn"], k=5, quiet=True)["knn"]
    assert result["data"]["train"] == 30


def test_finetuning_stands_beside_training_from_scratch(encoder, split) -> None:
    results = evaluate(encoder, data="any", protocols=["finetune-10"], epochs=1, quiet=True)
    result = results["finetune-10"]
    assert set(result["baselines"]) == {"scratch"}
    assert (result["settings"]["fraction"], result["settings"]["epochs"]) == (0.1, 1)
    assert result["settings"]["labelled"] < 12


def test_the_sgd_probe_names_its_paper(encoder, split, tmp_path: Path) -> None:
    settings = {"protocols": ["linear-sgd"], "epochs": 1, "quiet": True, "plain": plain_view(16, None)}
    result = evaluate(encoder, data="any", **settings)["linear-sgd"]
    assert (result["settings"]["paper"], result["settings"]["epochs"]) == ("moco", 1)
    assert result["baselines"]["pixels"]["settings"]["protocol"] == "linear-lbfgs"
    assert open_subject(encoder).probe == "moco"
    run = Run(tmp_path, encoder)
    for method, probe in (("mae", "mae"), ("simclr", "moco"), ("ibot", "moco")):  # iBOT's is of DINO's kind
        run.settings["method"] = method
        assert open_subject(run, plain=plain_view(16, None)).probe == probe


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown protocol 'liner'; did you mean 'linear'"):
        resolve_protocols(["knn", "liner"])
    with pytest.raises(UserError, match="no protocol"):
        resolve_protocols([])
    assert resolve_protocols(["finetune"]) == ["finetune-1", "finetune-10", "finetune-100"]


def test_the_table_is_plain_where_there_is_no_terminal(encoder, split, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(encoder, data="any", protocols=["knn"], k=5)
    said = capsys.readouterr().out
    assert "random encoder" in said
    assert "raw pixels" in said
    assert "k 5" in said
    assert "\x1b" not in said
    assert "│" not in said


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("title", ["a", "bb"], [["long", "1"], ["x", "22"]])
    assert capsys.readouterr().out == "title\na     bb\nlong  1\nx     22\n"


def test_saving_never_leaves_half_a_file(tmp_path: Path) -> None:
    save({"knn": {"scores": 1}}, tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save({"knn": {"scores": float("nan")}}, tmp_path)
    assert json.loads((tmp_path / "knn.json").read_text()) == {"scores": 1}


def test_a_run_without_labels_is_refused_before_anything_is_computed(encoder, split, monkeypatch) -> None:
    split[1].labels = None
    monkeypatch.setattr(module, "_contenders", lambda *args: pytest.fail("measured before it was refused"))
    with pytest.raises(UserError, match="no labels"):
        evaluate(encoder, data="any", quiet=True)
