"""Settings of a pipeline that goes on: fixed once a stage has learnt with them."""

from pathlib import Path
from typing import Any

import pytest

from selfsight.errors import UserError
from selfsight.pipelines.chain import begin, settle

LATER = {"second_lr": "2-second", "third": "3-third"}
KINDS = {"data": str | None, "second_lr": float | None, "third": str | None}
FIRST: dict[str, Any] = {"data": "world", "second_lr": None, "third": None}


def again(folder: Path, **given: object) -> dict[str, Any]:
    how: dict[str, Any] = {"kinds": KINDS, "defaults": {"data": "world"}, "later": LATER, "overwrite": False}
    return settle(folder, "some", {**FIRST, **given}, given.keys(), **how)


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


def test_a_setting_that_another_version_had_not_has_its_default(begun: Path) -> None:
    begin(begun, "some", {"third": "small"}, overwrite=False)
    assert again(begun) == {**FIRST, "third": "small"}
    with pytest.raises(UserError, match=r"\(--data world -> other\)"):
        again(begun, data="other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no_such": 1}, "unknown setting 'no_such'"),
        ({"data": 3}, "data is 3"),
        ({"second_lr": "x"}, "second_lr is 'x'"),
    ],
)
def test_settings_that_are_none_are_refused(changes: dict[str, Any], said: str, begun: Path) -> None:
    begin(begun, "some", {**FIRST, **changes}, overwrite=False)
    with pytest.raises(UserError, match=said):
        again(begun)


def test_a_pipeline_that_was_killed_while_it_began_begins(tmp_path: Path) -> None:
    """What it had written beside is nobody's; anything else in the folder is somebody's."""
    (tmp_path / ".pipeline.yaml.12345").write_text("form")
    assert again(tmp_path) == FIRST
    begin(tmp_path, "some", FIRST, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.yaml"]
    (tmp_path / "pipeline.yaml").rename(tmp_path / ".pipeline.yaml.mine")
    with pytest.raises(UserError, match="is not empty and holds no pipeline"):
        again(tmp_path)
