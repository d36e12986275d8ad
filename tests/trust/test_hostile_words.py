"""Flags, names of data and run files that mean harm or nothing: each is taken or refused in one line."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

import hypothesis
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from surroundings import changed, listing, started

from selfsight.cli import main
from selfsight.cli_pretrain import from_file
from selfsight.data import opening
from selfsight.data.listing import numbered, read_rows
from selfsight.data.opening import open_data
from selfsight.data.protocol import DataError
from selfsight.data.sampler import Sampler
from selfsight.encoders.store import load_encoder
from selfsight.engine.run import open_run
from selfsight.engine.stored import fits
from selfsight.errors import UserError
from selfsight.flags import SEEDS, Flags, flags_from, seconds
from selfsight.pipelines.chain import settle
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import assemble

Kept = Callable[[bool, str], None]

FLAGS = "any flags are taken with values in their range or refused in one line"
WORDS = "a hostile call is refused in one line with exit code 2, and leaves nothing behind"
DATA = "any name of data is opened or refused in one line, without network"
RUN = "a run.yaml by anyone is opened or refused in one line, and executes, deletes and fetches nothing"
ENCODER = "an encoder.json by anyone is loaded or refused in one line, and executes and fetches nothing"
PIPELINE = "a pipeline.yaml by anyone is gone on with or refused in one line"
HYPER = "any hyper-parameters make a recipe or are refused in one line"
PARSED = "lists, labels and times are parsed or refused in one line"
SAMPLER = "any batch size, processes and accumulation share out an epoch exactly or are refused in one line"

hypothesis.configuration.set_hypothesis_home_dir(
    os.path.join(os.devnull, "nothing")
)  # nothing is kept beside the tests


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


@lengths(200, 1500)
def test_flags_from_plain_values(examples: int, promise) -> None:
    kept: Kept = promise(FLAGS)
    named = st.one_of([st.tuples(st.just(f.name), _plausible(f) | ANY) for f in fields(Flags)])
    foreign = st.just({}) | st.dictionaries(TEXT, ANY, max_size=1)

    @tried(examples)
    @given(st.lists(named, max_size=3).map(dict), foreign)
    def check(own: dict[str, Any], more: dict[str, Any]) -> None:
        values = own | more

        def call() -> Flags:
            flags = flags_from(values)
            flags.check()
            return flags

        flags, line = refused(call)
        if flags is not None:
            counts = ("epochs", "batch_size", "accumulate", "limit", "image_size", "devices", "channels", "log_every")
            given_counts = [getattr(flags, name) for name in counts if getattr(flags, name) is not None]
            kept(all(type(n) is int and n >= 1 for n in given_counts), f"{values}")
            kept(flags.lr is None or 0 < flags.lr < float("inf"), f"{values}")
            kept(0 <= flags.seed < SEEDS and flags.save_minutes >= 0, f"{values}")
        else:
            kept(line is not None and len(line) > 0, f"{values}: {line}")

    check()


def _plausible(of: Field[Any]) -> st.SearchStrategy[Any]:
    """Values that a flag of this kind could have."""
    kinds = get_args(of.type) or (of.type,)
    known = {
        int: st.integers(-2, 500),
        float: st.floats(-1, 50),
        bool: st.booleans(),
        str: st.sampled_from(["world", "90s", "resnet18"]) | TEXT,
        Path: TEXT,
        type(None): st.none(),
    }
    found = [known.get(kind, st.just(kind)) for kind in kinds if isinstance(kind, str) or kind in known]
    return st.one_of(found or [TEXT])


@lengths(300, 3000)
def test_small_parsers(examples: int, promise, tmp_path: Path) -> None:
    kept: Kept = promise(PARSED)

    @tried(examples)
    @given(TEXT, st.lists(TEXT, max_size=6), st.binary(max_size=300), st.sampled_from(["csv", "tsv", "txt", "lst"]))
    def check(text: str, names: list[str], content: bytes, ending: str) -> None:
        found, line = refused(lambda: seconds(text))
        kept((found is not None and found > 0) or bool(line), f"time {text!r}: {found}")
        labels, classes = numbered(names)
        kept(len(labels) == len(names) and labels.max(initial=-1) < max(len(classes), 1), f"labels {names}")
        file = tmp_path / f"list.{ending}"
        file.write_bytes(content)
        rows, line = refused(lambda: read_rows(file))
        fine = rows is None or all(
            isinstance(part, str) and os.fsencode(part) is not None for row in rows for part in row
        )
        kept(fine and (rows is not None or bool(line)), f"{ending} {content!r}: {line}")

    check()


@lengths(120, 800)
def test_names_of_data(examples: int, promise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: Kept = promise(DATA)
    monkeypatch.chdir(tmp_path)

    def offline(name: str) -> Any:
        raise DataError(f"cannot get '{name}' from the Hub")

    monkeypatch.setattr(opening, "hub_files", offline)
    heads = st.sampled_from(
        ["", "world", "world:", "single:", "cifar10:", "imagenet:", "~", "./", "file:", "hf://", "a/b:"]
    )

    @tried(examples)
    @given(heads, TEXT)
    def check(head: str, tail: str) -> None:
        spec = head + tail
        assume(not os.path.isdir(os.path.expanduser(spec.replace("\0", ""))) or not spec)
        count = spec.partition(":")[2]
        assume(not (spec.startswith("world") and count.isdecimal() and len(count) < 10 and int(count) > 10**5))
        try:
            source, line = refused(lambda: open_data(spec))
        except OSError as error:  # a name too long for the system, which the command line tells in one line
            source, line = None, str(error)
        kept(source is not None or bool(line), f"{spec!r}: {line}")

    before = listing(tmp_path)
    with started() as others:
        check()
    kept(not others and not changed(before, listing(tmp_path)), str(others))


@lengths(150, 2000)
def test_how_an_epoch_is_shared_out(examples: int, promise) -> None:
    kept: Kept = promise(SAMPLER)
    size = st.integers(-3, 70)

    @tried(examples)
    @given(st.integers(1, 200), size, st.integers(1, 5), st.integers(1, 5), st.integers(0, SEEDS - 1))
    def check(n: int, batch: int, world: int, accumulate: int, seed: int) -> None:
        how = {"batch_size": batch, "seed": seed, "world": world, "accumulate": accumulate}
        case = f"{n} {how}"
        samplers, line = refused(lambda: [Sampler(n, rank=rank, **how) for rank in range(world)])
        if samplers is None:
            kept(bool(line) and (batch < 1 or batch > n or batch % (world * accumulate) > 0), f"{case}: {line}")
            return
        steps = samplers[0].steps_per_epoch
        shown = [
            int(position)
            for step in range(steps)
            for micro in range(accumulate)
            for sampler in samplers
            for position in sampler.micro(step, micro)[0]
        ]
        kept(len(shown) == len({*shown}) == steps * batch and {*shown} <= {*range(n)}, case)

    check()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run, whose files are then falsified."""
    out = tmp_path_factory.mktemp("sound") / "run"
    small = [
        "--data",
        "world:64",
        "--image-size",
        "16",
        "--backbone",
        "tiny_cnn",
        "--batch-size",
        "16",
        "--epochs",
        "1",
    ]
    main(["pretrain", "simclr", *small, "--no-report", "--logger", "none", "--probe-every", "0", "--out", str(out)])
    return out


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


@lengths(25, 150)
def test_hyper_parameters_of_recipes(examples: int, promise) -> None:
    kept: Kept = promise(HYPER)
    numbers = st.sampled_from([0, -1, 1, 3, 0.0, -0.5, 0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")])
    values = numbers | st.sampled_from(["", "warm", True, None, 7, 10**30])

    @tried(examples)
    @given(st.sampled_from(sorted(catalogue.cards())), st.data())
    def check(method: str, data: st.DataObject) -> None:
        own = sorted(catalogue.hyper_parameters(method))
        hyper = data.draw(st.dictionaries(st.sampled_from(own), values, max_size=2)) if own else {}
        card = catalogue.card(method)
        size = card.sizes[0] if card.sizes else 32
        flags = Flags(image_size=size, batch_size=8, epochs=2, backbone=_quick(method))
        made, line = refused(lambda: assemble(method, flags, hyper, samples=64, native=None))
        kept(made is not None or bool(line), f"{method} {hyper}: {line}")

    check()


def _quick(method: str) -> str | None:
    """A small backbone where the method takes any."""
    return "tiny_cnn" if catalogue.card(method).small_encoder.startswith("resnet") else None


HOSTILE: list[list[str]] = [
    ["pretrain", "simclr", "--image-size", "-5"],
    ["pretrain", "simclr", "--epochs", "9" * 30],
    ["pretrain", "simclr", "--batch-size", "9" * 30, "--data", "world:64", "--image-size", "16"],
    ["pretrain", "simclr", "--batch-size", "1e400"],
    ["pretrain", "simclr", "--lr", "nan"],
    ["pretrain", "simclr", "--lr", "inf"],
    ["pretrain", "simclr", "--weight-decay", "nan"],
    ["pretrain", "simclr", "--save-minutes", "nan"],
    ["pretrain", "simclr", "--max-time", "nan"],
    ["pretrain", "simclr", "--max-time", "-5s"],
    ["pretrain", "simclr", "--seed", "9" * 30],
    ["pretrain", "simclr", "--seed", "-1"],
    ["pretrain", "simclr", "--data", ""],
    ["pretrain", "simclr", "--data", "a" * 5000],
    ["pretrain", "simclr", "--data", "~no-such-user/x"],
    ["pretrain", "simclr", "--data", "x.tar"],
    ["pretrain", "simclr", "--data", "pipe.npy"],
    ["pretrain", "simclr", "--data", "single:/dev/zero"],
    ["pretrain", "simclr", "--data", "world:" + "9" * 5000],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--out", "x.tar"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--out", "a" * 300],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--projection", "-1"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--temperature", "nan"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--labels", "/dev/zero"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--labels", "x.tar"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--init-from", "/dev/zero"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--backbone", "local-dir:/dev"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--backbone", "../../etc/passwd"],
    ["pretrain", "simclr", "--data", "world:64", "--image-size", "16", "--backbone", "\x1b[2J\n"],
    ["pretrain", "simclr", "--resume", "--out", "x.tar"],
    ["pretrain", "\x1b[2J"],
    ["pretrain", "--from", "/dev/zero"],
    ["pretrain", "--from", "x.tar"],
    ["show", "simclr", "--image-size", "0"],
    ["show", "simclr", "--image-size", "-7"],
    ["show", "simclr", "--samples", "-1"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--rows", "-1"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--rows", "0"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--positions", "99"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--seed", "9" * 30],
    ["views", "simclr", "--data", "world:64", "--image-size", "-16"],
    ["views", "simclr", "--data", "world:64", "--image-size", "16", "--out", "nowhere/grid.png"],
    ["evaluate", "x.tar"],
    ["evaluate", "/dev/zero"],
    ["embed", "\0"],
    ["export", "x.tar", "--format", "timm"],
    ["report", "."],
    ["analyse", "timm:no_such", "--data", "world:64"],
    ["finetune", "x.tar"],
    ["distill", "/dev/zero"],
    ["demo", "--epochs", "-1"],
    ["bench", "../../x"],
    ["--no-such"],
]

WITH_A_RUN: list[list[str]] = [
    ["evaluate", "RUN", "--protocol", ""],
    ["evaluate", "RUN", "--protocol", "../x"],
    ["evaluate", "RUN", "--limit", "0"],
    ["evaluate", "RUN", "--limit", "-1"],
    ["evaluate", "RUN", "--k", "0"],
    ["evaluate", "RUN", "--k", "-1"],
    ["evaluate", "RUN", "--temperature", "0"],
    ["evaluate", "RUN", "--temperature", "nan"],
    ["evaluate", "RUN", "--seed", "9" * 30],
    ["evaluate", "RUN", "--head-layers", "-1"],
    ["evaluate", "RUN", "--head-layers", "99"],
    ["evaluate", "RUN", "--workers", "-1"],
    ["evaluate", "RUN", "--protocol", "linear-sgd", "--epochs", "0"],
    ["embed", "RUN", "--out", "features.exe"],
    ["embed", "RUN", "--limit", "-5"],
    ["analyse", "RUN", "--limit", "0"],
    ["analyse", "RUN", "--pictures", "-1"],
    ["pretrain", "simclr", "--resume", "--out", "RUN", "--seed", "5"],
]


@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: " ".join(words)[:60].encode("unicode_escape").decode())
def test_calls_that_cannot_be_meant(
    words: list[str], promise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"ustar" + bytes(600))
    os.mkfifo(tmp_path / "pipe.npy")
    leave_in_one_line(words, tmp_path, promise, capsys)


@pytest.mark.parametrize("words", WITH_A_RUN, ids=lambda words: " ".join(words)[:60])
def test_calls_on_a_run_that_cannot_be_meant(
    *,
    words: list[str],
    promise,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    leave_in_one_line([str(tmp_path / "run") if word == "RUN" else word for word in words], tmp_path, promise, capsys)


def leave_in_one_line(words: list[str], folder: Path, promise: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kept: Kept = promise(WORDS)
    before = listing(folder)
    code: object = None
    with started() as others:
        try:
            main(words)
        except SystemExit as left:
            code = left.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("selfsight: ")]
    after = changed(before, listing(folder))
    fine = code == 2 and len(lines) == 1 and len(said) == 1 and lines[0].isprintable()
    kept(fine and not after and not others, f"{' '.join(words)[:80]!r}: {code} {said[-3:]} {after} {others}")
