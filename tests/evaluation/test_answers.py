"""A teacher's answers on disk: no part of them is ever taken for another teacher's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfsight.evaluation.answers import as_rows, read_answers, write_answers

Answered = Callable[[float, Path], np.ndarray]


@pytest.fixture
def answered(pictures: Any, teacher: Any) -> Answered:
    """The answers of the teacher of a scale, written to a folder and read again."""

    def answer(scale: float, folder: Path) -> np.ndarray:
        how: dict[str, Any] = {"device": "cpu", "workers": 0, "part": 10, "say": lambda text: None}
        assert write_answers(teacher(scale), pictures(30), np.arange(30), folder, **how) == "done"
        return read_answers(folder).rows(np.arange(30))

    return answer


@pytest.mark.parametrize("killed", ["facts gone", "some parts gone", "new facts not yet there"])
def test_a_kill_while_old_answers_are_cleared_leaves_none_of_them(
    killed: str, answered: Answered, tmp_path: Path
) -> None:
    """Whatever was deleted first: the parts that are left were another teacher's."""
    wanted = answered(2.0, tmp_path / "fresh")
    old = answered(1.0, tmp_path / "a")
    assert not np.allclose(old, wanted, atol=1e-3)
    if killed == "facts gone":
        (tmp_path / "a" / "answers.json").unlink()
    for part in sorted((tmp_path / "a").glob("part-*"))[: {"facts gone": 0, "some parts gone": 2}.get(killed, 3)]:
        part.unlink()
    np.testing.assert_array_equal(answered(2.0, tmp_path / "a"), wanted)


def test_what_is_not_ours_stays(answered: Answered, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    answered(1.0, tmp_path)
    answered(2.0, tmp_path)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_rows_are_read_where_they_lie(tmp_path: Path) -> None:
    """In any order, over several parts, and none of them is brought into memory before."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), 25).astype(np.float32)
    (tmp_path / "answers.json").write_text('{"parts": 3}')
    for k, some in enumerate(np.array_split(np.arange(25), 3)):
        np.save(tmp_path / f"part-{k:05d}.npy", as_rows(100 + some, p[some]))
    found = read_answers(tmp_path)
    assert all(isinstance(part, np.memmap) for part in found._parts)
    which = np.array([24, 0, 9, 8, 9, 17])
    np.testing.assert_array_equal(found.rows(which), p[which])
    np.testing.assert_array_equal(found.positions, 100 + np.arange(25))
    predicted, confidence = found.best()
    np.testing.assert_array_equal(predicted, p.argmax(axis=1))
    np.testing.assert_array_equal(confidence, p.max(axis=1))
    assert found.classes == 3
