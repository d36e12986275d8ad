"""run.yaml, encoder.json and pipeline.yaml by anyone: each is taken or refused in one line, and executes nothing."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from any_words import ANY, TEXT, Kept, lengths, one_line, refused, small_run, tried
from hypothesis import assume, given
from hypothesis import strategies as st
from surroundings import changed, listing, started

from selfsight.cli import main
from selfsight.cli_pretrain import from_file
from selfsight.encoders.store import load_encoder
from selfsight.engine.run import open_run
from selfsight.engine.stored import fits
from selfsight.flags import Flags
from selfsight.pipelines.chain import settle
from selfsight.recipes import catalogue

RUN = "a run.yaml by anyone is opened or refused in one line, and executes, deletes and fetches nothing"
ENCODER = "an encoder.json by anyone is loaded or refused in one line, and executes and fetches nothing"
PIPELINE = "a pipeline.yaml by anyone is gone on with or refused in one line"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("sound") / "run")


def falsified(sound: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """The settings with some values replaced, anywhere in the tree, or left out where the new value is ``...``."""
    found = json.loads(json.dumps(sound))
    for which, value in changes:
        places = list(_places(found))
        holder, key = places[which % len(places)]
        if value is ...:
            del holder[key]
        else:
            holder[key] = value
    return found


def _places(tree: Any) -> Any:
    if isinstance(tree, dict):
        for key in tree:
            yield tree, key
            yield from _places(tree[key])


HARMFUL = frozenset({"--overwrite", "--resume", "--out"})
MORE = st.dictionaries(
    st.sampled_from(["overwrite", "resume", "out", "out=x --overwrite", "temperature", "projection", "init_from"])
    | TEXT,
    ANY | st.just("/home/somebody/runs/precious"),
    max_size=2,
)
"""Hyper-parameters that somebody has added."""
CHANGES = st.lists(st.tuples(st.integers(0, 500), ANY | st.just(...)), min_size=1, max_size=3)


@lengths(60, 600)
def test_settings_of_a_run(examples: int, promise, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: Kept = promise(RUN)
    sound = yaml.safe_load((run / "run.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()

    @tried(examples)
    @given(CHANGES | st.just([]), MORE)
    def check(changes: list[tuple[int, Any]], more: dict[str, Any]) -> None:
        false = falsified(sound, changes)
        if isinstance(false.get("hyper"), dict):
            false["hyper"] |= more
        (folder / "run.yaml").write_text(yaml.safe_dump(false, allow_unicode=True), encoding="utf-8")
        opened, line = refused(lambda: open_run(folder))
        kept(opened is not None or bool(line), f"{changes}: {line}")
        if opened is not None and _small(opened.settings):
            built, line = refused(lambda: opened.assembly)
            kept(built is not None or bool(line), f"{changes}: {line}")
        words, line = refused(lambda: from_file(["pretrain", "--from", str(folder / "run.yaml")]))
        harmless = words is not None and not HARMFUL & {word.split("=")[0] for word in words}
        kept(harmless or bool(line), f"{changes} {more}: {words} {line}")

    before = listing(tmp_path, without=(folder,))
    with started() as others:
        check()
    kept(not others and not changed(before, listing(tmp_path, without=(folder,))), str(others))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hyper": {"overwrite": True, "out": "precious"}}, "unknown hyper-parameter of simclr"),
        ({"hyper": {"out": "precious"}}, "unknown hyper-parameter of simclr 'out'"),
        ({"hyper": {"temperature": "--overwrite"}}, "hyper.temperature is '--overwrite'"),
        ({"hyper": {"temperature": None}}, None),
        ({"method": "finetune"}, "init_from is missing"),
        ({"method": "finetune", "flags": {"init_from": "--overwrite"}}, None),
        ({"method": "distill", "hyper": {"teacher": "--out=precious"}}, None),
    ],
    ids=str,
)
def test_a_run_file_cannot_say_what_becomes_of_another_run(
    changes: dict[str, Any], said: str | None, promise, run: Path, tmp_path: Path
) -> None:
    kept: Kept = promise(RUN)
    sound = yaml.safe_load((run / "run.yaml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sound | changes))
    words, line = refused(lambda: from_file(["pretrain", "--from", str(tmp_path / "run.yaml")]))
    if said is None:
        harmless = words is not None and not HARMFUL & {word.split("=")[0] for word in words}
        kept(harmless and "None" not in words, f"{words} {line}")
    else:
        kept(line is not None and said in line and one_line(line), f"{words} {line}")


def test_no_method_names_a_hyper_parameter_as_a_flag_of_every_run() -> None:
    """Else a run.yaml could say under the one name what it may not under the other."""
    every = {f.name for f in fields(Flags)}
    for name in (*catalogue.cards(), *catalogue.stages()):
        assert not every & catalogue.hyper_parameters(name).keys(), name


def _small(told: dict[str, Any]) -> bool:
    """Whether building what the file says could fill no machine: sizes are the user's to judge."""
    flags, hyper = told["flags"], told.get("hyper", {})
    numbers = [value for value in (*flags.values(), *hyper.values()) if isinstance(value, int | float)]
    return all(abs(value) < 10**4 for value in numbers)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "format: 1\nmethod: !!python/name:os.system\nflags: {}",
        "a: &a [*a, *a]\n",
        "&a a: " + "[" * 1500,
        "format: 1\nmethod: simclr\nflags: {data: '--overwrite', limit: -5}",
        "format: 1\nmethod: [simclr]\nflags: {}",
        "format: one\nmethod: simclr\nflags: {}",
        "format: 1\nmethod: simclr\nflags: [data]",
        "format: 1\nmethod: simclr\nflags: {}\nhyper: [1]",
        "format: 1\nmethod: simclr\nflags: {1: 2}",
        "format: 2001-99-99\nmethod: simclr\nflags: {}",
        "\0\0\0",
        "\xff\xfe",
        "",
        "[]",
    ],
)
def test_run_files_made_by_hand(
    *,
    text: str,
    promise,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept: Kept = promise(RUN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_bytes(text.encode("latin-1"))
    with started() as others:
        for words in (
            ["export", "run", "--format", "timm"],
            ["evaluate", "run"],
            ["pretrain", "--from", "run/run.yaml", "--limit=-1"],
        ):
            with pytest.raises(SystemExit) as left:
                main(words)
            said = capsys.readouterr().err.splitlines()
            kept(left.value.code == 2 and len(said) == 1, f"{words[0]} {text!r}: {said}")
    kept(not others and sorted(p.name for p in tmp_path.rglob("*")) == ["run", "run.yaml"], f"{text!r}: {others}")


@lengths(60, 600)
def test_facts_of_an_encoder(examples: int, promise, run: Path, tmp_path: Path) -> None:
    kept: Kept = promise(ENCODER)
    sound = json.loads((run / "encoder.json").read_text())
    folder = tmp_path / "encoder"
    folder.mkdir()
    shutil.copy(run / "encoder.safetensors", folder)

    @tried(examples)
    @given(CHANGES)
    def check(changes: list[tuple[int, Any]]) -> None:
        false = falsified(sound, changes)
        sizes = [false.get("image_size"), false.get("channels")]
        assume(all(not isinstance(size, int) or size < 10**4 for size in sizes))
        (folder / "encoder.json").write_text(json.dumps(false))
        encoder, line = refused(lambda: load_encoder(folder))
        kept(encoder is not None or bool(line), f"{changes}: {line}")

    with started() as others:
        check()
        for options in (
            {"checkpoint_path": str(tmp_path / "evil.pth")},
            {"pretrained_cfg": {"file": str(tmp_path / "evil.pth")}},
            {"pretrained": True},
            {"image_size": 5},
            {"no_such": 5},
            {"num_classes": 3},
        ):
            for name in ("resnet18", "tiny_cnn"):
                false = sound | {"name": name, "options": options}
                (folder / "encoder.json").write_text(json.dumps(false))
                encoder, line = refused(lambda: load_encoder(folder))
                kept(encoder is None and bool(line), f"{name} {options}: {line}")
        for content in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": 1}', b"null"):
            (folder / "encoder.json").write_bytes(content)
            encoder, line = refused(lambda: load_encoder(folder))
            kept(encoder is None and bool(line), f"{content[:20]!r}: {line}")
        (folder / "encoder.json").write_text(json.dumps(sound))
        weights = (run / "encoder.safetensors").read_bytes()
        for content in (
            b"",
            weights[:100],
            weights[: len(weights) // 2],
            b"\xff" * 8 + weights[8:],
            b"\x80\x04" + weights,
        ):
            (folder / "encoder.safetensors").write_bytes(content)
            encoder, line = refused(lambda: load_encoder(folder))
            kept(encoder is None and bool(line), f"weights of {len(content)}: {line}")
    kept(not others, str(others))


@lengths(60, 600)
def test_settings_of_a_pipeline(examples: int, promise, tmp_path: Path) -> None:
    kept: Kept = promise(PIPELINE)
    sound = {"format": 1, "pipeline": "simclr_v2", "settings": {"data": "world", "fraction": 0.1, "seed": 0}}
    kinds, defaults = {"data": str | None, "fraction": float | None, "seed": int | None}, {"data": "world", "seed": 0}

    @tried(examples)
    @given(CHANGES, st.binary(max_size=60), st.booleans())
    def check(changes: list[tuple[int, Any]], content: bytes, raw: bool) -> None:
        text = yaml.safe_dump(falsified(sound, changes), allow_unicode=True).encode()
        (tmp_path / "pipeline.yaml").write_bytes(content if raw else text)
        asked: dict[str, Any] = {"data": "world", "fraction": None, "seed": 1}
        how: dict[str, Any] = {"kinds": kinds, "defaults": defaults, "later": {}, "overwrite": False}
        found, line = refused(lambda: settle(tmp_path, "simclr_v2", asked, [], **how))
        whole = found is not None and all(fits(found[name], kind) for name, kind in kinds.items())
        kept((whole and found.keys() == kinds.keys()) or bool(line), f"{changes} {content!r}: {found} {line}")

    check()


@pytest.mark.parametrize("name", ["simclr_v2", "noisy_student"])
def test_pipelines_that_are_gone_on_with(
    name: str, promise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command itself: what the file has not is filled in, and what is there is judged like a flag."""
    kept: Kept = promise(PIPELINE)
    for settings_, said in (
        ({"data": "world:60", "fraction": 7}, "--fraction is 7"),
        ({"data": str(tmp_path / "no" / "such")}, "such"),
        ({"data": 3}, "data is 3"),
        ({"fraction": "much"}, "fraction is 'much'"),
        ({"no_such": 1}, "unknown setting 'no_such'"),
        ({"seed": -1}, "--seed is -1"),
    ):
        told = {"format": 1, "pipeline": name, "settings": settings_}
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(told))
        with pytest.raises(SystemExit) as left:
            main(["pipeline", name, "--out", str(tmp_path)])
        lines = capsys.readouterr().err.splitlines()
        kept(left.value.code == 2 and len(lines) == 1 and said in lines[0], f"{settings_}: {lines}")
    kept([path.name for path in tmp_path.iterdir()] == ["pipeline.yaml"], name)
