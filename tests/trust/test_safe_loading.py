"""Nothing in a file that somebody else wrote is executed, unpacked elsewhere or fetched; it is refused in one line."""

import ast
import json
import pickle
import re
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import hostile_files
from promises import Promises

import selfsight
from selfsight.cli_pretrain import from_file
from selfsight.data.opening import open_data
from selfsight.data.protocol import DataError
from selfsight.encoders.build import build_encoder
from selfsight.encoders.store import load_encoder
from selfsight.engine import checkpoint
from selfsight.engine.run import open_run
from selfsight.errors import UserError
from selfsight.loading import load_tokenizer
from selfsight.pipelines.chain import settle

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "selfsight").rglob("*.py"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that is whole."""
    place: dict[str, Any] = {"out": tmp_path_factory.mktemp("run") / "run", "report": False}
    small = {"data": "world:64", "image_size": 32, "backbone": "tiny_cnn", "batch_size": 32, "epochs": 1}
    return selfsight.pretrain("simclr", **small, **place, logger="none").path


def outcome(load: Callable[[], Any]) -> str:
    """What came of loading: "loaded", a refusal's line, or the error that nobody should see."""
    try:
        load()
    except (UserError, DataError) as error:
        return str(error) if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def refused(said: str, *names: str) -> bool:
    """Whether a refusal names the file, or what it was taken for."""
    return said != "loaded" and any(name in said for name in names) and not re.match(r"\w+(Error|Exception): ", said)


def places(run: Path, tmp: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Where a file that somebody else wrote may lie, and what loads it."""
    timm = tmp / "timm"
    timm.mkdir()
    (timm / "config.json").write_text('{"architecture": "resnet10t"}')
    cifar = tmp / "cifar" / "cifar-10-batches-py"
    cifar.mkdir(parents=True)
    images = tmp / "images"
    images.mkdir()
    flags = {**open_run(run).settings["flags"], "resume": True}
    again = {key: flags[key] for key in ("data", "image_size", "backbone", "batch_size", "epochs", "resume")}
    return {
        "last.pt": (run / "checkpoints/last.pt", lambda: open_run(run).recipe()),
        "--resume": (run / "checkpoints/last.pt", lambda: selfsight.pretrain("simclr", **again, out=run)),
        "best.pt": (run / "checkpoints/best.pt", lambda: open_run(run).recipe("best")),
        "encoder.safetensors": (run / "encoder.safetensors", lambda: selfsight.load(run)),
        "tokenizer.pt": (tmp / "tokenizer.pt", lambda: load_tokenizer(tmp / "tokenizer.pt", grid=4)),
        "images.npy": (tmp / "images.npy", lambda: open_data(tmp / "images.npy")),
        "images": (images / "x.npy", lambda: open_data(images)),
        "table.parquet": (tmp / "table.parquet", lambda: open_data(tmp / "table.parquet")),
        "local-dir": (
            timm / "pytorch_model.bin",
            lambda: build_encoder(f"local-dir:{timm}", image_size=32, pretrained=True),
        ),
        "CIFAR10": (cifar / "data_batch_1", lambda: open_data(f"cifar10:{tmp / 'cifar'}")),
    }


@pytest.mark.filterwarnings("ignore")  # of other libraries, about files that they then refuse
def test_no_file_executes_anything(run: Path, tmp_path: Path, promise: Promises) -> None:
    executed = promise("a file made to execute code executes none, wherever selfsight would read it")
    told = promise("a file made to execute code is refused in one line that names it")
    marker = tmp_path / "executed"
    files = hostile_files(marker)
    pickle.loads(files["a pickle"])
    assert marker.exists(), "the payload does nothing: it proves nothing"
    marker.rmdir()
    for name, (path, load) in places(run, tmp_path).items():
        before = path.read_bytes() if path.exists() else None
        for what, content in files.items():
            path.write_bytes(content)
            said = outcome(load)
            executed(not marker.exists() and not list(tmp_path.rglob("*climbed")), f"{what} as {name}")
            told(refused(said, path.name, name), f"{what} as {name}: {said}")
            if marker.exists():
                marker.rmdir()
        path.unlink()
        if before is not None:
            path.write_bytes(before)


TAGS = (
    "!!python/object/apply:os.makedirs [{marker}]",
    "!!python/object/new:os.makedirs [{marker}]",
    "!!python/name:os.makedirs",
    "!!python/module:os",
    "[" * 30_000,
    "{a: " * 30_000,
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmethod: *c",
    "method: &a [*a]",
    "format: 1\nmethod: simclr\nflags: {}\nresolved: &a {x: *a}",
    "\x00\xff",
    "2026-99-99",
    "? [a]\n: b",
)


def test_settings_are_plain_values(run: Path, tmp_path: Path, promise: Promises) -> None:
    executed = promise("a YAML or JSON file of a run's folder executes nothing")
    told = promise("a YAML or JSON file of a run's folder that is none is refused in one line that names it")
    marker = tmp_path / "executed"

    def pipeline() -> Any:
        return settle(tmp_path, "simclr_v2", {}, (), kinds={}, defaults={}, later={}, overwrite=False)

    loads: list[tuple[Path, Callable[[], Any]]] = [
        (run / "run.yaml", lambda: open_run(run)),
        (run / "run.yaml", lambda: from_file(["pretrain", "--from", str(run / "run.yaml")])),
        (run / "encoder.json", lambda: load_encoder(run)),
        (tmp_path / "pipeline.yaml", pipeline),
    ]
    for path, load in loads:
        before = path.read_bytes() if path.exists() else None
        for tag in TAGS:
            path.write_text(tag.replace("{marker}", str(marker)), encoding="latin-1")
            said = outcome(load)
            executed(not marker.exists(), f"{tag[:40]!r} in {path.name}")
            told(refused(said, path.name), f"{tag[:40]!r} in {path.name}: {said}")
        path.unlink() if before is None else path.write_bytes(before)


def test_an_archive_cannot_grow(tmp_path: Path, promise: Promises) -> None:
    told = promise("a checkpoint whose parts are larger than the file is refused before they are read")
    path = tmp_path / "last.pt"
    for size in (1_000_000, 200_000_000):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
            archive.writestr("archive/data/0", bytes(size))
        told("cannot be read (BadZipFile" in outcome(lambda: checkpoint.load(path)), f"{size:,} bytes")


def test_an_encoder_asks_for_nothing_else(run: Path, promise: Promises, monkeypatch: pytest.MonkeyPatch) -> None:
    told = promise("an encoder's file that asks for another file or the network is refused")
    asked: list[Any] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: asked.append(a) or [])
    path = run / "encoder.json"
    before = path.read_text()
    facts = json.loads(before)
    other = {
        "a Hub's name": {"name": "hf-hub:somebody/something"},
        "a folder's name": {"name": "local-dir:elsewhere"},
        "weights to fetch": {"options": {"pretrained": True}},
        "a file to load": {"options": {"checkpoint_path": "weights.bin"}},
        "another configuration": {"options": {"pretrained_cfg_overlay": {"file": "weights.bin"}}},
    }
    for what, change in other.items():
        path.write_text(json.dumps({**facts, **change}))
        said = outcome(lambda: load_encoder(run))
        told("asks for other files or the network" in said and not asked, f"{what}: {said}")
    path.write_text(before)


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "jsonpickle"}
FORBIDDEN_CALLS = (
    r"eval|exec|compile|__import__|os\.(system|popen|exec\w*|spawn\w*)|torch\.(jit\.load|hub\.\w+|package\..*)|"
    r"yaml\.(load|load_all|unsafe_load|full_load)|shutil\.unpack_archive|.*\.extract(all)?|.*_use_new_zipfile.*"
)


def calls(path: Path) -> list[tuple[str, dict[str, str], int]]:
    found: list[tuple[str, dict[str, str], int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            named = {k.arg or "**": ast.unparse(k.value) for k in node.keywords}
            found.append((ast.unparse(node.func), named, node.lineno))
    return found


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_the_source_has_no_way_to_execute_a_file(promise: Promises) -> None:
    kept = promise("no module of selfsight unpickles, evaluates, unpacks an archive or starts a shell")
    for path in SOURCES:
        wrong = sorted(imports(path) & FORBIDDEN_IMPORTS)
        for call, named, line in calls(path):
            bad = re.fullmatch(FORBIDDEN_CALLS, call) or named.get("shell", "False") != "False"
            bad = bad or (call == "torch.load" and named.get("weights_only") != "True")
            bad = bad or (call in ("np.load", "np.fromfile") and named.get("allow_pickle") != "False")
            bad = bad or (
                call.endswith("load_state_dict_from_url") or named.get("trust_remote_code", "False") != "False"
            )
            wrong += [f"{call} in line {line}"] if bad else []
        kept(not wrong, f"{path.relative_to(ROOT)}: {', '.join(wrong)}")
    readers = [path.name for path in SOURCES if any(call == "torch.load" for call, *_ in calls(path))]
    kept(readers == ["checkpoint.py"], f"torch.load, whose files need their sums compared, is in {readers}")


COME_WITH = {"markupsafe": "jinja2", "pyarrow": "datasets"}
"""Packages that selfsight imports and another of its dependencies brings."""
CALLED = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "lightning": "lightning-fabric"}


def test_what_is_imported_is_declared_and_pinned(promise: Promises) -> None:
    declared = promise("what selfsight imports is declared in pyproject.toml")
    pinned = promise("what selfsight depends on has its version in constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(one for name in extras for one in extras[name])]
    names = {plain(re.split(r"[<>=\[ ]", one)[0]) for one in needed}
    for name in sorted(set().union(*map(imports, SOURCES)) - sys.stdlib_module_names - {"selfsight", "__future__"}):
        package = plain(COME_WITH.get(name, CALLED.get(name, name)))
        declared(package in names, f"{name} of {package}")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fixed = {plain(line.split("==")[0]) for line in lines if "==" in line}
    for package in sorted({plain(re.split(r"[<>=\[ ]", one)[0]) for one in project["dependencies"]}):
        pinned(package in fixed, package)


def plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def test_an_archive_under_another_name(tmp_path: Path, promise: Promises) -> None:
    told = promise("an .npz archive that is called .npy is refused in one line")
    np.savez(tmp_path / "images.npz", x=np.zeros((4, 8, 8), np.uint8))
    path = (tmp_path / "images.npz").rename(tmp_path / "images.npy")
    told("is an .npz archive" in outcome(lambda: open_data(path)), "as data")
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "x.npy")
    told("x.npy is not an image" in outcome(lambda: open_data(tmp_path / "folder")), "in a folder")


def test_torch_itself_is_what_is_promised(tmp_path: Path) -> None:
    """Why the sums are compared: torch loads flipped bytes without a word. Should it refuse them one day, drop it."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(3000)) + 1500] = 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["w"].any()
    with pytest.raises(zipfile.BadZipFile, match="is not what was written"):
        checkpoint.read(path)
