"""What ``make mutants`` breaks on purpose is still there to be broken, and the tests that should tell still exist."""

import pytest
from mutants import MUTANTS, ROOT


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_broken_on_purpose_is_there(name: str) -> None:
    mutant = MUTANTS[name]
    assert (ROOT / "src/selfsight" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    file, _, test = mutant.guard.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_section_is_broken_once() -> None:
    sections = {
        line[3:].strip().lower()
        for line in (ROOT / "docs/trust.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## ")
    }
    assert {mutant.section for mutant in MUTANTS.values()} == sections - {"figures"}
