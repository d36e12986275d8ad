"""Settings of a pipeline that goes on: fixed once a stage has learnt with them."""

from pathlib import Path
from typing import Any

import pytest

from selfsight.errors import UserError
from selfsight.pipelines.chain import begin, settle

LATER = {"second_lr": "2-second", "third": "3-third"}
FIRST: dict[str, Any] = {"data": "world", "second_lr": None, "third": None}


def again(folder: Path, **given: object) -> dict[str, Any]:
    return settle(folder, "some", {**FIRST, **given}, given.keys(), later=LATER, overwrite=False)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    begin(tmp_path / "run", "some", FIRST, overwrite=False)
    return tmp_path / "run"


def test_settings_of_stages_that_have_not_learnt_may_change(begun: Path) -> None:
    (begun / "2-second").mkdir()  # begun, and stopped before its first checkpoint
    assert again(begun) == FIRST
    assert again(begun, second_lr=0.1) == {**FIRST, "second_lr": 0.1}
    assert again(begun, third="small") == {**FIRST, "third": "small"}


@pytest.mark.parametrize("trace", ["checkpoints/last.pt", "encoder.safetensors"])
def test_those_of_stages_that_have_are_refused(begun: Path, trace: str) -> None:
    path = begun / "2-second" / trace
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match=r"begun with other settings \(--second-lr None -> 0\.1\)"):
        again(begun, second_lr=0.1, third="small")
    assert again(begun, third="small")["third"] == "small"


def test_those_of_the_first_stage_always_are(begun: Path) -> None:
    with pytest.raises(UserError, match=r"\(--data world -> other\); go on without them, or start anew"):
        again(begun, data="other")
