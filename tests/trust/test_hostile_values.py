"""Flags, names of data, lists and hyper-parameters that mean harm or nothing: each is taken or refused in one line."""

import os
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from any_words import ANY, TEXT, Kept, lengths, refused, tried
from hypothesis import assume, given
from hypothesis import strategies as st
from surroundings import changed, listing, started

from selfsight.data import opening
from selfsight.data.listing import numbered, read_rows
from selfsight.data.opening import open_data
from selfsight.data.protocol import DataError
from selfsight.data.sampler import Sampler
from selfsight.flags import SEEDS, Flags, flags_from, seconds
from selfsight.recipes import catalogue
from selfsight.recipes.assembly import assemble

FLAGS = "any flags are taken with values in their range or refused in one line"
DATA = "any name of data is opened or refused in one line, without network"
HYPER = "any hyper-parameters make a recipe or are refused in one line"
PARSED = "lists, labels and times are parsed or refused in one line"
SAMPLER = "any batch size, processes and accumulation share out an epoch exactly or are refused in one line"


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


@pytest.mark.parametrize("name", ["device", "precision", "optimiser", "logger"])
def test_a_word_that_a_flag_does_not_know_is_refused_before_flags_are_made(name: str) -> None:
    flags, line = refused(lambda: flags_from({name: "\U000b9bd5"}))
    assert flags is None
    assert line is not None
    assert line.startswith(f"unknown {name}")


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
