"""Breaks one promise on purpose at a time, in a copy of selfsight, and sees that the test which guards it fails.

``make mutants`` tries all, ``python tests/support/mutants.py NAME ...`` some. A guard that passes, or that cannot run,
ends it with exit code 1.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``file``, and ``guard``, a test, fails."""

    section: str
    what: str
    file: str
    old: str
    new: str
    guard: str


MUTANTS: dict[str, Mutant] = {
    "rows": Mutant(
        "kills and resumes",
        "a resumed run keeps the rows of updates that it makes again",
        "engine/journal.py",
        "and int(step) < limit",
        "",
        "tests/trust/test_kills.py::test_a_killed_run_ends_as_the_one_that_was_not[8]",
    ),
    "checksums": Mutant(
        "kills and resumes",
        "the checksums of a checkpoint are not compared",
        "engine/checkpoint.py",
        "damaged := archive.testzip()",
        "damaged := None",
        "tests/trust/test_damage.py::test_flipped_bits[150]",
    ),
    "data": Mutant(
        "kills and resumes",
        "data that changed between a kill and a resume are not noticed",
        "engine/start.py",
        'before["fingerprint"] != now["fingerprint"] or renamed',
        "renamed",
        "tests/trust/test_troubles.py::test_data_that_change_between_kill_and_resume",
    ),
    "summed": Mutant(
        "many processes",
        "gradients are summed over the processes instead of averaged",
        "engine/machine.py",
        "        flat /= dist.get_world_size()\n",
        "",
        "tests/methods/test_adco.py::test_two_processes_have_the_adversaries_of_one",
    ),
    "left": Mutant(
        "many processes",
        "a process that left is an error like any other",
        "engine/pulse.py",
        'isinstance(error, dist.DistError) or "gloo" in str(error).lower()',
        "False",
        "tests/trust/test_processes.py::test_a_killed_process_ends_the_run_and_another_number_goes_on",
    ),
    "silence": Mutant(
        "many processes",
        "nobody misses a machine that is cut off",
        "engine/pulse.py",
        "            if silent:",
        "            if False:",
        "tests/trust/test_processes.py::test_two_hosts_of_which_one_is_cut_off_and_comes_back",
    ),
    "full": Mutant(
        "resources that run out",
        "a full disk is an error like any other",
        "engine/checkpoint.py",
        "while error is not None:",
        "while False:",
        "tests/trust/test_troubles.py::test_a_disk_that_fills_up[5]",
    ),
    "finite": Mutant(
        "numbers",
        "an update that is not finite is made",
        "engine/update.py",
        "if self.looks and not self.sound():",
        "if False:",
        "tests/trust/test_numbers.py::test_one_bad_step_is_left_out_and_said",
    ),
    "half": Mutant(
        "numbers",
        "losses are computed in the half type that they are given",
        "losses/precision.py",
        "return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x",
        "return x",
        "tests/trust/test_numbers.py::test_losses_of_extreme_features_in_half_types",
    ),
    "collapse": Mutant(
        "numbers",
        "features that hardly spread are no collapse",
        "engine/monitors.py",
        "if spread < COLLAPSED:",
        "if spread < 0:",
        "tests/trust/test_collapse.py::test_a_collapse_is_named_while_it_happens",
    ),
    "offsets": Mutant(
        "bad input",
        "where an Arrow file says that its rows lie is not checked",
        "data/table.py",
        "        self._check()\n",
        "",
        "tests/trust/test_bad_tables.py::test_whatever_is_called_a_table",
    ),
    "bomb": Mutant(
        "bad input",
        "an image may have any number of pixels",
        "data/decoding.py",
        "if pixels > MAX_PIXELS:",
        "if False:",
        "tests/trust/test_bad_images.py::test_a_bomb_is_refused_before_it_fills_memory[no limit of Pillow's]",
    ),
    "pickle": Mutant(
        "what is handed over",
        "a checkpoint may hold any object",
        "engine/checkpoint.py",
        "weights_only=True)",
        "weights_only=False)",
        "tests/trust/test_safe_loading.py::test_no_file_executes_anything",
    ),
    "escape": Mutant(
        "what is handed over",
        "a file's name is part of a report's HTML",
        "report/page.py",
        "autoescape=True",
        "autoescape=False",
        "tests/trust/test_damage.py::test_names_of_files_stay_text",
    ),
    "leak": Mutant(
        "long runs",
        "each update keeps 20 kB",
        "engine/update.py",
        "        self.begun |= set(objective.by)\n",
        '        self.begun |= set(objective.by)\n        vars(self).setdefault("kept", []).append(bytes(20_000))\n',
        "tests/trust/test_long_runs.py::test_twenty_thousand_updates",
    ),
}


def fallen(mutant: Mutant) -> str:
    """Why the guard fails on a copy of selfsight with this one change; a guard that does not is refused."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        file = source / "selfsight" / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-m", "trust or not trust", mutant.guard],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    reasons = [said for said in re.findall(r"^E +(.+)", done.stdout, re.MULTILINE) if "no case was tried" not in said]
    if done.returncode != 1 or not reasons:
        raise SystemExit(f"{mutant.what}, and {mutant.guard} ends with {done.returncode}:\n{done.stdout[-3000:]}")
    return reasons[0]


def main(names: list[str]) -> None:
    for name in names or MUTANTS:
        mutant = MUTANTS[name]
        why = fallen(mutant)
        print(f"{mutant.section}: {mutant.what}\n  {mutant.guard} fails:\n  {why[:300]}", flush=True)
    print(f"{len(names or MUTANTS)} promises broken on purpose, and each told by its test")


if __name__ == "__main__":
    main(sys.argv[1:])
