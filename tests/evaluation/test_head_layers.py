"""``--head-layers``: a run's encoder with the first layers of its head, in every protocol and beside its baselines."""

from pathlib import Path

import pytest
import torch

import selfsight
from selfsight.engine.run import OpenRun
from selfsight.errors import UserError
from selfsight.evaluation.baselines import fresh
from selfsight.evaluation.subject import open_subject
from selfsight.parts.head_layers import WithHead
from selfsight.pretraining import pretrain

QUICK = {
    "data": "world:200",
    "image_size": 32,
    "backbone": "tiny_cnn",
    "batch_size": 50,
    "epochs": 1,
    "optimiser": "adamw",
    "precision": "32",
    "probe_every": 0,
    "report": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    return pretrain("simclr_v2", **QUICK, out=tmp_path_factory.mktemp("head") / "run")


def test_the_encoder_ends_in_the_runs_own_layers(run: OpenRun) -> None:
    plain, first, last = (open_subject(run, head_layers=n).encoder for n in (0, 1, 3))
    state = torch.load(run.path / "checkpoints" / "last.pt", weights_only=True)["method"]
    assert isinstance(first, WithHead)
    kept = first.head.state_dict()
    assert kept
    assert all(torch.equal(state[f"projector.{key}"], value) for key, value in kept.items())
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert first(x).min() >= 0
        assert first(x).shape == (4, 128)
        assert last(x).min() < 0
        torch.testing.assert_close(first.backbone(x), plain(x))


def test_fine_tuning_stands_beside_the_same_encoder_from_scratch(run: OpenRun) -> None:
    found = selfsight.evaluate(run, protocols=("finetune-10", "knn"), head_layers=1, k=5, epochs=1, quiet=True)
    result = found["finetune-10"]
    assert result["head_layers"] == 1
    assert set(result["baselines"]) == {"scratch"}
    assert {path.name for path in (run.path / "evaluation").iterdir()} == {"finetune-10-head1.json", "knn-head1.json"}


def test_from_scratch_nothing_is_left_of_the_pretraining(run: OpenRun) -> None:
    trained = open_subject(run, head_layers=1).encoder
    assert isinstance(trained, WithHead)
    other, again = (fresh(trained, seed=3) for _ in range(2))
    assert isinstance(other, WithHead)
    weights = [key for key, value in trained.state_dict().items() if value.ndim > 1]
    assert any(key.startswith("head.") for key in weights)
    assert any(key.startswith("backbone.") for key in weights)
    for key in weights:
        assert not torch.equal(trained.state_dict()[key], other.state_dict()[key]), key
        assert torch.equal(again.state_dict()[key], other.state_dict()[key])


def test_heads_that_are_not_there(run: OpenRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--head-layers is 4, but the head has 3 layers; use 0 to 3"):
        open_subject(run, head_layers=4)
    with pytest.raises(UserError, match="--head-layers is 1, but an encoder alone has no head; give its run"):
        open_subject(selfsight.load(run.path), head_layers=1)
    headless = pretrain("rotation", **QUICK, out=tmp_path / "run")
    with pytest.raises(UserError, match="is a run of rotation, which has no head; leave out --head-layers"):
        open_subject(headless, head_layers=1)
