"""Promises are counted: each test says what is promised and what became of every case; the run ends with a table."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from forked import Warm
from promises import Promises

PROPERTY = "promise"
_counted: dict[str, list[int]] = {}


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Iterator[Promises]:
    """``promise("a run ends as …")(held, "case")`` counts a case; the test fails where one broke, or none was tried."""
    promises = Promises()
    yield promises
    for what, one in promises.made.items():
        request.node.user_properties.append((PROPERTY, [what, one.tried, one.tried - len(one.broken)]))
    broken = [f"{what}: {case}" for what, one in promises.made.items() for case in one.broken]
    assert not broken, "\n".join(broken)
    assert all(one.tried for one in promises.made.values()), "a promise of which no case was tried"


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that carries out commands in forks of itself, which tests may kill."""
    process = Warm()
    yield process
    process.close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up what the tests counted, wherever they ran."""
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == PROPERTY:
                what, tried, held = cast(list[Any], value)
                sums = _counted.setdefault(what, [0, 0])
                sums[0] += tried
                sums[1] += held


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: promise, cases tried, cases held."""
    if not _counted:
        return
    width = max(map(len, _counted))
    terminalreporter.section("promises")
    terminalreporter.line(f"{'promise':<{width}}  {'tried':>6}  {'held':>6}")
    for what, (tried, held) in sorted(_counted.items()):
        terminalreporter.line(f"{what:<{width}}  {tried:>6}  {held:>6}")
