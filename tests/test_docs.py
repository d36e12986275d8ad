"""The documentation says what the code gives: tables are current, pages exist, README's loop runs."""

import importlib.util
import inspect
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from selfsight.cli import _app, evaluate, import_
from selfsight.flags import Flags
from selfsight.pipelines.noisy_student import noisy_student
from selfsight.pipelines.simclr_v2 import simclr_v2
from selfsight.recipes.catalogue import UNMEASURED, cards, hyper_parameters, listed, stages

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def docs():
    """docs/build.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_code_gives(docs):
    for path, name, table in docs.TABLES:
        text = path.read_text(encoding="utf-8")
        assert text == docs.filled(text, name, table()), f"{path.name} is out of date; run: python docs/build.py"


def test_what_is_listed_is_what_was_measured(docs):
    shown = re.findall(r"^\| `(\w+)` \|", docs.methods_table(), re.MULTILINE)
    assert sorted(shown) == sorted(listed()) == sorted(docs.known())


def test_what_waits_for_its_measurement_is_a_recipe():
    assert set(cards()) >= UNMEASURED


@pytest.mark.parametrize("name", list(cards()))
def test_a_page_has_idea_equations_differences_recipe_and_flags(docs, name):
    page = docs.method_page(cards()[name])
    assert page.startswith(f"# {cards()[name].title}\n")
    assert "**Idea.**" in page
    assert "**Differences**" in page
    assert page.count("$$") >= 2
    assert page.count("$$") % 2 == 0
    assert ":math:" not in page
    assert ".. math::" not in page
    assert "``" not in page.replace("```", "")


def test_beit_s_page_says_how_to_come_by_a_tokenizer(docs):
    page = docs.method_page(cards()["beit"])
    assert "selfsight pretrain dvae --data images/ --out runs/dvae\n" in page
    assert "selfsight pretrain beit --data images/ --tokenizer runs/dvae\n" in page


def test_flags_are_the_recipe_s_own(docs):
    table = docs.flags_table("simclr")
    assert "| `--temperature` | float \\| None | by the recipe |" in table
    assert "--batch-size" not in table


def test_results_come_from_committed_files_only(docs, tmp_path, monkeypatch):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.known() == set()
    assert docs.ladder_table() == "Not measured yet."
    entry = {"encoder": "small_cnn", "knn": 0.5, "linear": 0.613, "epochs": 7, "cpu_minutes": 12.04}
    entry |= {"flags": {"backbone": "small_cnn", "batch_size": 250}, "machine": {"processor": "P"}}
    result = {
        "rules": {"cpu_minutes": 12.0, "threads": 1, "seed": 0},
        "data": {"name": "cifar10", "train": 10_000, "test": 10_000},
        "baselines": {"pixels": {"knn": 0.37, "linear": 0.38}, "small_cnn": {"knn": 0.3, "linear": 0.402}},
        "methods": {"simclr": {**entry, "versions": {"torch": "2.11"}}, "byol": {"failed": "loss is not finite"}},
    }
    (tmp_path / "benchmarks" / "results" / "ladder.json").write_text(json.dumps(result))
    table = docs.methods_table().splitlines()
    assert next(line for line in table if "`simclr`" in line).endswith("| CIFAR-10, linear | 61.3 % | +21.1 |")
    assert next(line for line in table if "`byol`" in line).endswith("| – | – | – |")
    whole = docs.ladder_table().splitlines()
    assert whole[2] == "| `simclr` | small_cnn | 50.0 % | 61.3 % | 7 | 12.0 | batch size 250 |"
    assert whole[3] == "| raw pixels | – | 37.0 % | 38.0 % | – | – | |"
    assert "estimated at 12 CPU minutes on 1 thread, seed 0" in whole[-1]
    page = docs.results_table("simclr")
    assert "| 50.0 % | 61.3 % | 7 | 12.0 |" in page
    assert "| the same encoder untrained | 30.0 % | 40.2 % | – | – |" in page
    assert docs.known() == {"simclr"}


def test_the_table_of_speed_says_what_was_met(docs, tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.speed_table() == "Not measured yet."
    row = {"what": "kNN", "unit": "s", "ours": 2.0, "against": "faiss-cpu", "theirs": 3.0, "ratio": 1.5}
    result = {
        "rows": [{**row, "target": 1.0, "met": True}, {**row, "target": 2.0, "met": False}],
        "machine": {"cpu": "P", "cores": 2},
        "versions": {"python": "3.11", "torch": "2.11", "faiss-cpu": "1.15"},
        "date": "2026-11-22",
    }
    (folder / "knn.json").write_text(json.dumps(result))
    (folder / "memory.json").write_text(json.dumps({"rows": [{"workers": 1}]}))  # figures, but no comparison
    lines = docs.speed_table().splitlines()
    assert lines[0] == "`benchmarks/knn.py`: P, 2 cores, torch 2.11, faiss-cpu 1.15; 2026-11-22."
    assert lines[-2] == "| kNN | 2 s | faiss-cpu | 3 s | 1.50 | 1: met |"
    assert lines[-1].endswith("| 1.50 | 2: not met |")


def test_markdown_of_display_equations(docs):
    text = "Before\n\n.. math:: a = b\n    + c,\n\n    d\n\nafter :math:`x\n  y`.\n\n- ``z``"
    assert docs.to_markdown(text) == "Before\n\n$$\na = b\n+ c,\nd\n$$\n\nafter $x y$.\n\n- `z`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_local_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http", "docs/images/")) or "methods/" in target:
            continue  # the network; pages and pictures that are built
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


COMMAND_FLAGS = {
    "cpu-minutes",
    "data",
    "out",
    "protocol",
    "format",
    "kind",
    "positions",
    "epoch",
    "from",
    "help",
    "version",
    "which",
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_flags_in_the_text_exist(path):
    own = [name for stage in stages() for name in hyper_parameters(stage)]
    commands = (simclr_v2, noisy_student, evaluate, import_)
    functions = [name for command in commands for name in inspect.signature(command).parameters]
    known = {name.replace("_", "-") for name in (*Flags.__dataclass_fields__, *own, *functions)} | COMMAND_FLAGS
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'add_argument\("--([a-z-]+)"', script.read_text(encoding="utf-8")))
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", path.read_text(encoding="utf-8")):
        assert flag in known, f"{path.name} names --{flag}"


def commands(path: Path) -> list[str]:
    blocks = re.findall(r"```[a-z]*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [line for line in lines if line.startswith("selfsight ")]


@pytest.mark.parametrize("path", [path for path in PAGES if commands(path)], ids=lambda path: path.name)
def test_commands_are_understood(path):
    """By the command line itself, flags and all; nothing is run."""
    for line in commands(path):
        words = shlex.split(line, comments=True)[1:]
        command, bound, *_ = _app(words).parse_args(words, exit_on_error=False, print_error=False)
        assert callable(command), line
        assert bound.args or bound.kwargs or len(words) == 1, line


def test_readme_s_loop_trains(tmp_path):
    """The loop as printed, on fewer images: parameters move and stay finite."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    loop = next(block for block in blocks if "drive(" in block)
    assert "epochs=10" in loop
    assert 'open_data("world",' in loop
    shorter = (
        loop.replace('open_data("world",', 'open_data("world:64",')
        .replace("=256", "=32")
        .replace("epochs=10", "epochs=1")
    )
    script = tmp_path / "loop.py"
    script.write_text(shorter)
    torch.manual_seed(0)
    after = runpy.run_path(str(script))
    assert after["steps"] == 2
    optimiser, method = after["optimiser"], after["recipe"].method
    assert all(float(state["step"]) == 2 for state in optimiser.state.values())
    assert len(optimiser.state) == sum(p.requires_grad for p in method.parameters())
    assert all(p.isfinite().all() for p in method.parameters())
