"""Values that mean harm or nothing, the same in every run, and how a call took them."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from selfsight.cli import main
from selfsight.data.protocol import DataError
from selfsight.errors import UserError

Kept = Callable[[bool, str], None]

# nothing is kept beside the tests
hypothesis.configuration.set_hypothesis_home_dir(os.path.join(os.devnull, "nothing"))


def tried(examples: int) -> Any:
    """The same examples in every run, and no limit on one's time: machines differ."""
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=unhealthy
    )


def lengths(few: int, many: int) -> Any:
    return pytest.mark.parametrize(
        "examples", [pytest.param(few, id=str(few)), pytest.param(many, id=str(many), marks=pytest.mark.trust)]
    )


TEXT = st.text(max_size=40) | st.sampled_from(
    [
        "",
        "-1",
        "nan",
        "inf",
        "1e999",
        "--overwrite",
        "../..",
        "/dev/zero",
        "a\0b",
        "\x1b[2J",
        "[/]",
        "{0}",
        "~x",
        "9" * 5000,
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, float("nan"), float("inf")])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXT
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def refused(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What the call gave, or the line it was refused with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(), None
        except (UserError, DataError) as error:
            return None, str(error)


def one_line(text: str) -> bool:
    return bool(text) and "\n" not in text


def small_run(out: Path) -> Path:
    """A small finished run at ``out``, whose files are then falsified."""
    small = "--data world:64 --image-size 16 --backbone tiny_cnn --batch-size 16 --epochs 1".split()
    main(["pretrain", "simclr", *small, "--no-report", "--logger", "none", "--probe-every", "0", "--out", str(out)])
    return out
