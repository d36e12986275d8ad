"""Files of a run that are cut short or damaged by a bit or a value: refused in one line, or no worse for it."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from endings import pictures, same
from forked import Warm
from promises import Promises
from safetensors.torch import load_file

import selfsight
from selfsight.data.protocol import DataError
from selfsight.encoders.store import load_encoder
from selfsight.engine import checkpoint
from selfsight.engine.run import open_run
from selfsight.errors import UserError
from selfsight.pipelines.chain import Stage, write_summary
from selfsight.report.gather import gather_content
from selfsight.report.page import build_page

QUICK: dict[str, Any] = {"data": "world:64", "image_size": 32, "backbone": "tiny_cnn", "batch_size": 32, "epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    selfsight.pretrain("simclr", **QUICK, out=out, report=False, logger="none")
    (out / "evaluation").mkdir()
    scores = {"top1": 0.5, "top5": 0.9, "per_class": 0.5, "samples": 10}
    facts = {
        "protocol": "knn",
        "encoder": "last",
        "scores": scores,
        "baselines": {"pixels": scores},
        "settings": {"k": 20},
        "data": {},
    }
    (out / "evaluation" / "knn.json").write_text(json.dumps({**facts, "quality": {"trained": {"rank": 3.0}}}))
    return out


def loaded(load: Callable[[], Any]) -> Any:
    """What came of it, or the one line of a refusal as an error; any other error is one that nobody should see."""
    try:
        return load()
    except (UserError, DataError) as error:
        return error if "\n" not in str(error) else RuntimeError(f"several lines: {error}")
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")


def flipped(content: bytes, times: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Copies of which one bit is another: half of the places near the ends, where an archive says what it holds."""
    drawn = random.Random(seed)
    for k in range(times):
        size = len(content)
        place = drawn.choice([drawn.randrange(min(2000, size)), size - 1 - drawn.randrange(min(6000, size))])
        place = drawn.randrange(size) if k % 2 else place
        changed = bytearray(content)
        changed[place] ^= 1 << drawn.randrange(8)
        yield f"byte {place} of {size}", bytes(changed)


@pytest.mark.parametrize("times", [150, pytest.param(4000, marks=pytest.mark.trust)])
def test_flipped_bits(times: int, run: Path, tmp_path: Path, promise: Promises) -> None:
    kept = promise("a checkpoint of which a bit has changed is refused in one line, or loads the very same numbers")
    short = promise("a checkpoint that is cut short is refused in one line")
    weights = promise("an encoder of which a bit has changed is refused in one line, or loads the very same weights")
    path, before = tmp_path / "last.pt", (run / "checkpoints" / "last.pt").read_bytes()
    path.write_bytes(before)
    good = checkpoint.load(path)
    for case, content in flipped(before, times, 0):
        path.write_bytes(content)
        found = loaded(lambda: checkpoint.load(path))
        kept(type(found) is UserError or same(found, good), f"{case}: {found}"[:300])
    drawn = random.Random(1)
    for length in [0, 1, 100, *(drawn.randrange(len(before)) for _ in range(times // 5))]:
        path.write_bytes(before[:length])
        found = loaded(lambda: checkpoint.load(path))
        short(type(found) is UserError, f"{length} of {len(before)} bytes: {found}"[:300])
    state = load_file(run / "encoder.safetensors")
    for name in ("encoder.safetensors", "encoder.json"):
        path, before = run / name, (run / name).read_bytes()
        for case, content in flipped(before, times // 3, 2):
            path.write_bytes(content)
            found = loaded(lambda: load_encoder(run))
            equal = isinstance(found, torch.nn.Module) and same(dict(found.model.state_dict()), state)  # pyright: ignore
            weights(type(found) is UserError or equal, f"{name}, {case}: {found}"[:300])
        path.write_bytes(before)


def test_a_part_that_says_it_is_a_folder(run: Path, tmp_path: Path, promise: Promises) -> None:
    """One bit in the list at an archive's end, of which no checksum knows: torch would read nothing for that part."""
    kept = promise("a checkpoint of which a bit has changed is refused in one line, or loads the very same numbers")
    content, path = (run / "checkpoints" / "last.pt").read_bytes(), tmp_path / "last.pt"
    starts = [one.start() for one in re.finditer(b"PK\x01\x02", content)]
    assert len(starts) > 50
    for start in starts[5::20]:
        changed = bytearray(content)
        changed[start + 38] ^= checkpoint.FOLDER
        path.write_bytes(changed)
        found = loaded(lambda: checkpoint.load(path))
        kept(type(found) is UserError, f"the part at {start}: {found}"[:300])


BAD = (None, "x", -1, 1.5, True, [], {}, [[]], {"x": "y"}, "../../x", 10**30, "\x00")


def spoilt(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value's place, with each bad value that may stand there."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield from (((*place, key), bad) for bad in BAD)
        if isinstance(value, dict | list):
            yield from spoilt(value, (*place, key))


def with_value(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = inner = copy.deepcopy(values)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def opened(run: Path) -> None:
    found = open_run(run)
    found.recipe()
    found.encoder()
    found.trained_on()


@pytest.mark.parametrize("most", [60, pytest.param(2000, marks=pytest.mark.trust)])
def test_any_one_value_spoilt(most: int, run: Path, promise: Promises) -> None:
    kept = promise("a run of whose small files any one value is spoilt is opened, or refused in one line")
    page = promise("a run of whose evaluation any one value is spoilt still gets its page")

    def paged() -> str:
        return build_page(gather_content(run))

    def summed() -> None:
        stage = Stage(name=run.name, what="it", protocol="knn", run=lambda *_: "done", measure=print)
        write_summary(run.parent, [stage])

    loads: list[tuple[str, Callable[[str], Any], Callable[[Any], str], Callable[[], Any], Any]] = [
        ("run.yaml", yaml.safe_load, yaml.safe_dump, lambda: opened(run), kept),
        ("encoder.json", json.loads, json.dumps, lambda: load_encoder(run), kept),
        ("evaluation/knn.json", json.loads, json.dumps, summed, kept),
        ("evaluation/knn.json", json.loads, json.dumps, paged, page),
    ]
    for name, read, write, load, promised in loads:
        path, before = run / name, (run / name).read_text()
        values = read(before)
        cases = list(spoilt(values))
        few = most // 8 if load is paged else most
        for place, bad in random.Random(0).sample(cases, min(few, len(cases))):
            path.write_text(write(with_value(values, place, bad)))
            found = loaded(load)
            held = isinstance(found, str) if load is paged else not isinstance(found, RuntimeError)
            promised(held, f"{name} says {'.'.join(map(str, place))} is {bad!r}: {found}"[:300])
        path.write_text(before)


class Elements(HTMLParser):
    """The elements of a page, each with the names of its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *sorted(name for name, _ in attrs)))


def elements(page: Path) -> set[tuple[str, ...]]:
    reader = Elements()
    reader.feed(page.read_text(encoding="utf-8"))
    scripts = sum(found[0] == "script" for found in reader.found)
    return {*reader.found, ("scripts", str(scripts))}


HOSTILE = ("<img src=x onerror=alert(1)>", "\"' onmouseover='alert(2)' <script>alert(3)<!--")


def test_names_of_files_stay_text(warm: Warm, tmp_path: Path, promise: Promises) -> None:
    told = promise("the report of images and classes with hostile names has the elements of one with plain names")
    pages: list[set[tuple[str, ...]]] = []
    for which, (names, start) in enumerate([(("cat", "dog"), ""), (HOSTILE, "<svg onload=alert(4)>&quot;\u2028")]):
        folder = pictures(tmp_path / f"data{which}", names, start)
        for k in range(8):  # some of them are held back for evaluation
            (folder / names[k % 2] / f"{start}broken{k}.png").write_bytes(b"no picture")
        flags = [
            "--image-size",
            "32",
            "--backbone",
            "tiny_cnn",
            "--batch-size",
            "16",
            "--epochs",
            "2",
            "--workers",
            "0",
        ]
        out = tmp_path / f"run{which}"
        words = ["pretrain", "simclr", "--data", str(folder), "--out", str(out), *flags]
        ended = warm.command(words, cache=tmp_path / f"cache{which}")
        assert ended.code == 0, ended.said
        pages.append(elements(out / "report.html"))
    text = (tmp_path / "run1" / "report.html").read_text(encoding="utf-8")
    told("&lt;img src=x onerror" in text, "the hostile names are on the page")
    told(pages[0] == pages[1], str(sorted(pages[0] ^ pages[1])))
