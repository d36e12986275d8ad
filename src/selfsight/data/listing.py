"""A list file as a source: one image a line, and perhaps its label; and labels from a CSV for any source.

A CSV (``.csv``, ``.tsv``) has the path in a column ``path``, ``file``, ``filename``, ``image`` or ``name`` and the
label in ``label``, ``class`` or ``target``; without such a header the path comes first and the label second. In a text
file a line is a path, or a path, a tab and a label; ``path 17`` as well, where the number follows a file ending. Paths
are relative to the list's folder.
"""

import csv
import io
import os
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np

from selfsight.data.cache import digest
from selfsight.data.decoding import EXTENSIONS
from selfsight.data.folder import Files, printable
from selfsight.data.index import Walked, changed, indexed, settled
from selfsight.data.protocol import DataError, Source
from selfsight.data.splits import Relabelled

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "name")
_LABELS = ("label", "class", "target", "category")
_BLANKS = " \t\r\n\f\v"  # not Unicode's: a name may begin with one of those
_NUMBERED = re.compile(rf"(.*(?:{'|'.join(map(re.escape, sorted(EXTENSIONS)))}))[ ]+(-?\d+)", re.IGNORECASE)


def open_list(file: Path, *, channels: int | None = None) -> Files:
    """The images that ``file`` lists, in its order. Raises ``DataError`` where there are none."""
    path = os.path.abspath(file)
    return Files(indexed(digest(path, "list"), lambda: _walked(path)), name=os.path.basename(path), channels=channels)


def _walked(path: str) -> Walked:
    began, time_of_list = time.time_ns(), changed(path)
    rows = read_rows(Path(path))
    if not rows:
        raise DataError(f"{path} lists no image; write one path a line, relative to the list's folder")
    split = [os.path.split(row[0]) for row in rows]
    number: dict[str, int] = {}
    of = np.fromiter((number.setdefault(d, len(number)) for d, _ in split), np.int32, len(split))
    names = [os.fsencode(name) for _, name in split]
    labels, classes = numbered([row[1] for row in rows])
    return Walked(
        root=os.path.dirname(path),
        directories=list(number),
        of=of,
        names=b"".join(names),
        lengths=np.fromiter(map(len, names), np.int64, len(names)),
        labels=labels if classes else np.zeros(0, dtype=np.int64),
        classes=classes,
        watched=[path],
        times=settled([time_of_list], began),
    )


def read_rows(file: Path) -> list[tuple[str, str]]:
    """(path, label) of each line of a CSV or text file; the label is empty where there is none."""
    if file.exists() and not file.is_file():  # a device may be read for ever
        raise DataError(f"cannot read {file} (it is no file)")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror})") from None
    if file.suffix.lower() not in (".csv", ".tsv"):  # a line ends at a newline: names may hold Unicode's other ends
        return [_line(line.strip(_BLANKS)) for line in text.split("\n") if line.strip(_BLANKS)]
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    try:
        rows = [row for row in table if any(row)]
    except csv.Error as error:  # a quotation mark that never ends, for instance
        raise DataError(f"cannot read {file} as a table: {error}, before line {table.line_num}") from None
    first = [cell.strip().lower() for cell in rows[0]] if rows else []
    at, label = 0, 1
    if {*first} & {*_PATHS, *_LABELS}:  # a header
        rows = rows[1:]
        label = next((i for i, name in enumerate(first) if name in _LABELS), len(first))
        at = next((i for i, name in enumerate(first) if name in _PATHS), 0 if label else 1)
    return [(_cell(row, at), _cell(row, label)) for row in rows if _cell(row, at)]


def _cell(row: list[str], column: int) -> str:
    return row[column].strip(_BLANKS) if column < len(row) else ""


def _line(line: str) -> tuple[str, str]:
    path, _, label = line.partition("\t")
    if not label and (match := _NUMBERED.fullmatch(line)):
        return match[1], match[2]
    return path.strip(_BLANKS), label.strip(_BLANKS)


def numbered(names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, -1 for an empty one, and their names: in the order of numbers where all are, else of words."""
    known = {name for name in names if name}
    integers = all(re.fullmatch(r"-?\d{1,18}", name) for name in known)
    classes = tuple(sorted(known, key=int) if integers else sorted(known))
    number = {name: i for i, name in enumerate(classes)}
    return np.fromiter((number.get(name, -1) for name in names), np.int64, len(names)), classes


def labelled(source: Source, file: Path) -> Source:
    """``source`` with the labels of a CSV, matched by path, else by file name, else by file name without ending.

    Images that the CSV doesn't name, or whose file name others have too, are without label. Raises ``DataError`` where
    it names none of them.
    """
    rows = read_rows(file)
    labels, classes = numbered([label for _, label in rows])
    if not classes:
        raise DataError(f"{file} holds no label; give it two columns, path and label")
    names = [source.where(i) for i in range(len(source))]
    for key in (os.path.normpath, os.path.basename, lambda path: os.path.splitext(os.path.basename(path))[0]):
        given = _unambiguous([key(printable(path)) for path, _ in rows], labels)
        keys = [key(name) for name in names]
        shared = {name for name, count in Counter(keys).items() if count > 1}
        found = np.fromiter((-1 if k in shared else given.get(k, -1) for k in keys), np.int64, len(names))
        if (found >= 0).any():
            return Relabelled(source, found, classes)
    raise DataError(
        f"no image of {source.name} is named in {file}: it says '{rows[0][0]}', the images are like '{names[0]}'"
    )


def _unambiguous(keys: list[str], labels: np.ndarray) -> dict[str, int]:
    given: dict[str, int] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        if given.setdefault(key, label) != label:
            given[key] = -1  # one name, two labels: neither is taken
    return given
