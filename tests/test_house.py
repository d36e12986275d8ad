"""The walls of the house: which way imports point, names that say nothing, and traps that read well but break."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "selfsight"
MODULES = sorted(ROOT.rglob("*.py"))

MAY_IMPORT = {
    "losses": {"losses", "distributed"},
    "schedules": {"method"},
    "distributed": set(),
    "keyed": set(),
    "batches": set(),
    "lab": set(),
    "parts": {"parts", "losses", "schedules", "distributed", "batches", "encoders.protocol"},
    "methods": {"method", "batches", "parts", "losses", "schedules", "distributed", "encoders.protocol", "lab"},
    "method": {"batches", "encoders.protocol"},
    "sizes": set(),
    "writing": set(),
    "views": {"views", "batches", "keyed", "sizes", "lab"},
    "encoders": {"encoders", "errors", "sizes", "writing"},
}
"""Of selfsight's own modules, what each room may import; rooms that are not named may import all."""

NAMELESS = {"utils", "util", "common", "base", "helpers", "helper", "misc"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "selfsight":
            inside = node.module.removeprefix("selfsight").removeprefix(".")
            yield from [inside] if inside else [alias.name for alias in node.names]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    allowed = MAY_IMPORT.get(room(path))
    if allowed is None:
        allowed = {part.name.removesuffix(".py") for part in ROOT.iterdir()}
    for name in imported(path):
        fits = any(name == wall or name.startswith(f"{wall}.") for wall in allowed)
        assert fits, f"{path.relative_to(ROOT)} imports selfsight.{name}"


def test_the_engine_knows_no_particular_method() -> None:
    for path in (ROOT / "engine").glob("*.py"):
        for name in imported(path):
            assert not name.startswith("methods"), f"{path.name} imports selfsight.{name}"


def test_names_say_something() -> None:
    for path in [*MODULES, *(Path(__file__).parent).rglob("*.py")]:
        assert path.stem not in NAMELESS, path


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_no_yield_inside_a_with(path: Path) -> None:
    """The engine would run inside the method's context: gradient mode or autocast would leak into it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.With):
            inside = [n for statement in node.body for n in ast.walk(statement)]
            assert not any(isinstance(n, ast.Yield | ast.YieldFrom) for n in inside), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_loads_execute_nothing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if call == "torch.load":
            assert keywords.get("weights_only") == "True", f"{path.name}:{node.lineno}"
        if call in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"{path.name}:{node.lineno}"
        assert call not in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"), (
            f"{path.name}:{node.lineno}"
        )


def test_the_list_needs_no_torch() -> None:
    code = "import sys; from selfsight.cli import main; main(['list']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "simclr" in done.stdout
