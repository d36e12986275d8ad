"""Parquet, Arrow, arrays, lists and archives that are cut, flipped or made to do harm."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_images import DAMAGES, archive, corpus, encoded, npy_claiming, scene, stored, stored_pickle
from surroundings import changed, listing, started
from trials import Died, tried

from selfsight.data.opening import open_data
from selfsight.data.protocol import DataError, Source, Unreadable

OPENS = "a broken table, array or list is opened or refused in one line, within 30 s"
ROWS = "each row of a table, array or list that opens is 8-bit RGB or unreadable, for a reason of one line"
LABELS = "labels of a table or list lie within its classes"
INSIDE = "nothing is written outside the run's folder and the cache, started or asked of the network"


class File(NamedTuple):
    name: str
    content: bytes


def test_whatever_is_called_a_table(tmp_path: Path, promise) -> None:
    examine([*tables(), *arrays(), *lists(), *archives()], tmp_path, promise)


@pytest.mark.parametrize("n", [60, pytest.param(800, marks=pytest.mark.trust)])
def test_damaged_tables(n: int, tmp_path: Path, promise) -> None:
    sound = [file for file in (*tables(), *arrays()) if file.name.startswith("sound")]
    damages = [how for how in DAMAGES if how.__name__ != "spliced"]

    def damaged(i: int) -> File:
        drawn, file = np.random.default_rng((7, i)), sound[i % len(sound)]
        _, content = damages[i % len(damages)]("", file.content, drawn)
        return File(f"{i:04d}{file.name}", content)

    examine([damaged(i) for i in range(n)], tmp_path, promise)


def examine(files: list[File], folder: Path, promise: Callable[[str], Callable[[bool, str], None]]) -> None:
    """Opens each file as ``--data`` does and reads all its rows; in children, which it may take with it."""
    data = folder / "data"
    data.mkdir()
    for file in files:
        (data / file.name).parent.mkdir(exist_ok=True)
        (data / file.name).write_bytes(file.content)
    before = listing(data)
    opens, rows, labels = promise(OPENS), promise(ROWS), promise(LABELS)
    for file, answer in zip(files, tried([data / file.name for file in files], opened, seconds=30), strict=True):
        found = Died(answer.how) if isinstance(answer, Died) else answer
        if isinstance(found, str):
            opens("\n" not in found and len(found) < 800, f"{file.name}: {found}")
            continue
        opens(not isinstance(found, Died), f"{file.name}: {found}")
        if not isinstance(found, Died):
            rows(not found["rows"], f"{file.name}: {found['rows']}")
            labels(found["labels"], f"{file.name}: {found}")
            promise(INSIDE)(not found["started"], f"{file.name}: {found['started']}")
    promise(INSIDE)(not changed(before, listing(data)), str(changed(before, listing(data))))


def opened(path: Path) -> str | dict[str, Any]:
    """The line it was refused with, or what its rows are like."""
    with started() as others:
        try:
            source = open_data(path, split="all", channels=3)
        except DataError as error:
            return str(error)
        return {"rows": wrong_rows(source), "labels": fitting(source), "started": others}


def wrong_rows(source: Source) -> list[str]:
    found = []
    for position, image in enumerate(source.read_many(np.arange(len(source)))):
        where = source.where(position)
        if isinstance(image, Unreadable):
            fine = bool(str(image)) and "\n" not in str(image)
        else:
            fine = image.dtype == np.uint8 and image.ndim == 3 and len(image) == 3 and image.size > 0
        if not fine or not isinstance(where, str):
            found.append(f"{where}: {image!r}"[:300])
    return found


def fitting(source: Source) -> bool:
    labels = source.labels
    if labels is None:
        return True
    inside = len(labels) == len(source) and labels.dtype == np.int64 and labels.min(initial=0) >= -1
    return bool(inside and (not source.classes or labels.max(initial=-1) < len(source.classes)))


PNG = [encoded(scene(30 + i, 30), "PNG") for i in range(6)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(table: pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def arrow(table: pa.Table, *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def tables() -> Iterator[File]:
    """Sound ones of each kind, and what no data set should hold."""
    images = pa.array([{"bytes": png, "path": f"{i}.png"} for i, png in enumerate(PNG)], STRUCT)
    plain = pa.table({"image": images, "label": pa.array([0, 1, 2, 0, 1, 2])})
    yield File("sound.parquet", parquet(plain))
    yield File("sound-zstd.parquet", parquet(plain, compression="zstd", use_dictionary=False))
    yield File("sound.arrow", arrow(plain))
    yield File("sound-stream.arrow", arrow(plain, stream=True))
    for name, labels in {
        "uint8": pa.array([0, 1, 2, 0, 1, None], pa.uint8()),
        "uint64": pa.array([0, 1, 2, 0, 1, 2**64 - 1], pa.uint64()),
        "identifiers": pa.array([10**18, 5, 10**18, 7, -9, None], pa.int64()),
        "negative": pa.array([-5, -1, 0, 1, 2, 3]),
        "lists": pa.array([["a"], ["b"], [], None, ["a", "b"], ["c"]]),
        "words": pa.array(["a", "b", None, "", "9" * 5000, "\n"]),
        "numbers": pa.array(["1", "2", "9" * 5000, "-1", "٣", "²"]),
        "floats": pa.array([0.5, float("nan"), 1.0, 2.0, 3.0, None]),
        "nothing": pa.nulls(6),
    }.items():
        table = pa.table({"image": images, "label": labels})
        yield File(f"labels-{name}.parquet", parquet(table))
        yield File(f"labels-{name}.arrow", arrow(table))
    for name, features in {
        "few": {"label": {"_type": "ClassLabel", "names": ["one"]}},
        "text": {"label": {"_type": "ClassLabel", "names": "abc"}},
        "number": {"label": {"_type": "ClassLabel", "names": 5}},
        "list": ["label"],
        "deep": {"label": 3, "image": None},
    }.items():
        noted = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        yield File(f"names-{name}.arrow", arrow(plain.replace_schema_metadata(noted)))
    columns = {
        "standard-input": pa.array([{"bytes": i, "path": None} for i in range(3)], pa.struct([("bytes", pa.int64())])),
        "nulls": pa.array([None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}], STRUCT),
        "paths": pa.array([{"bytes": None, "path": p} for p in ("/etc/passwd", "/dev/zero", "a\0b", "..")], STRUCT),
        "number-paths": pa.array(
            [{"bytes": None, "path": 0}, {"bytes": PNG[0], "path": 1}],
            pa.struct([("bytes", pa.binary()), ("path", pa.int64())]),
        ),
        "no-bytes": pa.array([1, 2, 3]),
        "null": pa.nulls(3),
        "broken": pa.array([case.content for case in corpus(230)][190:]),
    }
    for name, column in columns.items():
        yield File(f"column-{name}.arrow", arrow(pa.table({"image": column})))
        yield File(f"column-{name}.parquet", parquet(pa.table({"image": column})))
    empty = plain.slice(0, 0)
    yield File("empty.parquet", parquet(empty))
    yield File("empty.arrow", arrow(empty))
    twice = pa.Table.from_arrays([images, images], names=["image", "image"])
    yield File("twice.arrow", arrow(twice))
    yield File("twice.parquet", parquet(twice))
    yield from out_of_bounds(plain)


def out_of_bounds(table: pa.Table) -> Iterator[File]:
    """Rows that say they lie far outside the file: taken at its word, reading them would end the process."""
    content = arrow(pa.table({"image": pa.array(PNG), "label": table["label"]}))
    starts = np.cumsum([0, *map(len, PNG)]).astype("<i4").tobytes()
    at = content.index(starts)
    for name, numbers in {
        "far": [0, *[2**31 - 1] * 6],
        "before": [-(2**31)] + [0] * 6,
        "back": [0, 5000, 10, 9000, 0, 1, 2],
    }.items():
        yield File(
            f"rows-{name}.arrow", content[:at] + np.array(numbers, "<i4").tobytes() + content[at + len(starts) :]
        )
    text = pa.table({"image": pa.array(PNG), "label": pa.array(["aaaa"] * 6)})
    yield File("rows-no-text.arrow", arrow(text).replace(b"aaaa", b"\xff\xfe\xfd\xfc"))
    path = pa.table({"image": pa.array([{"bytes": png, "path": "aaaa.png"} for png in PNG], STRUCT)})
    yield File("rows-no-path.arrow", arrow(path).replace(b"aaaa.png", b"\xff\xfe\xfd\xfc.png"))


def arrays() -> Iterator[File]:
    """Stacks of images in .npy files."""
    yield File("sound.npy", stored(np.zeros((5, 12, 14, 3), np.uint8)))
    yield File("sound-grey.npy", stored(np.ones((5, 12, 14), np.float32)))
    yield File("empty.npy", b"")
    yield File("text.npy", b"no array")
    yield File("zip.npy", b"PK\x03\x04" + bytes(100))
    yield File("archive.npy", archive())
    yield File("pickle.npy", stored_pickle())
    for i, (kind, shape) in enumerate(
        [
            ("|u1", "(10**9, 9, 9)"),
            ("|u1", "(-1, 4, 4)"),
            ("|u1", "(2, 2, (2,))"),
            ("|O", "(4, 4, 4)"),
            ("|u1", "(" * 99),
        ]
    ):
        yield File(f"claims{i}.npy", npy_claiming(kind, shape))
    for kind in ("<U9", "<M8[s]", "<c16", ">f4", "<i8"):
        yield File(f"kind-{kind[1:3]}.npy", stored(np.zeros((3, 4, 4), kind)))


def lists() -> Iterator[File]:
    """Lists of images: hardly any of the named ones exist."""
    yield File("there.png", PNG[0])
    endings = {"csv": ",", "tsv": "\t", "txt": "\t", "lst": " "}
    for ending, between in endings.items():
        yield File(f"some.{ending}", between.join(["there.png", "0"]).encode())
        yield File(f"none.{ending}", b"")
        yield File(f"zeros.{ending}", b"there.png\n" + bytes(300) + b"\nthere.png\n")
        yield File(f"quote.{ending}", b'path,label\nthere.png,1\n"there.png,1\n' + b"x,1\n" * 60_000)
        yield File(f"long.{ending}", b"there.png\n" + b"a" * 1_000_000)
        yield File(f"many.{ending}", between.join(["there.png", "9" * 5000]).encode() + b"\n" + b"there.png\t-5\n" * 20)
        yield File(f"utf16.{ending}", "there.png\nthere.png".encode("utf-16"))
        yield File(f"bytes.{ending}", bytes(range(256)) * 40 + b"\nthere.png\n")
        yield File(f"devices.{ending}", b"/dev/zero\n/dev/stdin\n/proc/self/mem\n.\n..\n/\nthere.png\n")
        yield File(f"header.{ending}", b"label,path\n")
        yield File(f"upwards.{ending}", b"there.png\n" + b"../" * 2000 + b"x.png\n")


def archives() -> Iterator[File]:
    """Archives are no data: whole or broken, they are refused by their name, unopened."""
    for name in ("whole.tar", "broken.tar", "some.tar.gz", "some.zip", "some.pkl", "some.pt", "none"):
        yield File(name, b"ustar" + bytes(2000))


@pytest.mark.parametrize("name", ["dataset_dict.json", "train.parquet"])
def test_folders_that_promise_tables(name: str, tmp_path: Path, promise) -> None:
    """A note of tables without any, a folder that is called like one, and files of different columns."""
    opens = promise(OPENS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / name).mkdir() if name.endswith("parquet") else (tmp_path / "empty" / name).write_text("{}")
    (tmp_path / "mixed").mkdir()
    for i, column in enumerate(("image", "picture", "image")):
        kind = pa.int64() if i == 2 else pa.binary()
        table = pa.table({column: pa.array([1] if i == 2 else [PNG[0]], kind)})
        (tmp_path / "mixed" / f"{i}.arrow").write_bytes(arrow(table))
    for folder in ("empty", "mixed"):
        (answer,) = tried([tmp_path / folder], opened, seconds=30)
        opens(isinstance(answer, str) and "\n" not in answer, f"{folder}: {answer}")
