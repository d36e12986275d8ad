"""Images in Arrow tables: parquet files, Arrow files, what `datasets` saved to disk, and Hub names.

Random access wants uncompressed rows, so parquet is written once, its image and label columns only, into one Arrow file
in the cache folder, which is then memory-mapped: reading a row copies that row's bytes and nothing else. Hub data sets
lie there already as Arrow files of `datasets`, which is imported only for them.
"""

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from selfsight.data.cache import beside, cache_folder, digest
from selfsight.data.decoding import decode, probe
from selfsight.data.listing import numbered
from selfsight.data.protocol import DataError, Unreadable, one_by_one
from selfsight.data.splits import split_of
from selfsight.data.survey import survey

_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes")
_LABELS = ("label", "labels", "class", "target", "category", "fine_label", "coarse_label", "cls")
_TEXT = ("string", "large_string", "string_view")
_ENCODED = ("binary", "large_binary", "struct<bytes: binary", "struct<bytes: large_binary", "struct<bytes: null")
_MOST_CLASSES = 1_000_000
_ROWS = 256  # a record batch: what is held in memory while parquet is rewritten


class Table:
    """The images in one column of Arrow files, memory-mapped; it pickles as their paths."""

    def __init__(self, files: Sequence[Path], *, name: str, channels: int | None = None) -> None:
        self.files, self.name = list(files), name
        self._map()
        self._check()
        self.labels: np.ndarray | None
        self.labels, self.classes = self._labelling()
        stats = [file.stat() for file in self.files]
        sizes = json.dumps([len(self), *(stat.st_size for stat in stats)])
        self.fingerprint = digest(sizes, *self.classes, b"" if self.labels is None else self.labels)
        self.cache_key = digest(
            self.fingerprint, *(f"{os.path.realpath(f)} {f.stat().st_mtime_ns}" for f in self.files)
        )
        found = survey(self._probe, len(self), name=name, where=self.where, key=self.cache_key)
        self.native, self.channels = found.as_channels(channels)

    def _map(self) -> None:
        tables = [_mapped(file) for file in self.files]
        self._schema, self._tables = tables[0].schema, tables
        column = image_column(self._schema, self.name)
        self._chunks = [chunk for table in tables for chunk in self._column(table, column).chunks if len(chunk)]
        self._starts = np.cumsum([0, *map(len, self._chunks)]).tolist()
        if len(self) == 0:
            raise DataError(f"{self.name} holds no rows")

    def _column(self, table: Any, name: str) -> Any:
        try:
            return table.column(name)
        except KeyError:
            has = ", ".join(table.schema.names)
            raise DataError(f"not every file of {self.name} has one column '{name}'; there is {has}") from None

    def _check(self) -> None:
        """Sees that every row lies within its file, which is mapped and else taken at its word to the last."""
        try:
            for chunk in self._chunks:
                chunk.validate(full=True)
        except ValueError as error:
            raise DataError(f"{self.name} is damaged ({str(error).splitlines()[0]}); copy it anew") from None

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_schema", "_tables", "_chunks", "_starts")
        return {name: value for name, value in vars(self).items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        return self._starts[-1]

    def _row(self, position: int) -> tuple[bytes | None, str | None]:
        number = bisect_right(self._starts, position) - 1
        value = self._chunks[number][position - self._starts[number]].as_py()
        content, path = (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)
        return content if isinstance(content, bytes) else None, path if isinstance(path, str) else None

    def _bytes(self, position: int) -> bytes | str:
        content, path = self._row(position)
        if content is None and path is None:
            raise Unreadable("holds neither bytes nor a path")
        return content if content is not None else str(path)

    def _probe(self, position: int) -> tuple[int, int, int]:
        return probe(self._bytes(position))

    def _labelling(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        import pyarrow as pa  # noqa: PLC0415

        column = next((name for name in self._schema.names if name.lower() in _LABELS), None)
        if column is None:
            return None, ()
        parts = [self._column(table, column) for table in self._tables]
        named = _features(self._schema).get(column, {}).get("names")
        kinds = [str(part.type) for part in parts]
        try:
            for part in parts:
                part.validate(full=True)
            if all(kind.startswith(("int", "uint")) for kind in kinds):
                whole = [part.cast(pa.int64()).fill_null(-1).to_numpy() for part in parts]
                return _named(np.maximum(np.concatenate(whole), -1), named)
            if all(kind in _TEXT for kind in kinds):
                return numbered([value or "" for part in parts for value in part.to_pylist()])
        except ValueError as error:  # damaged, or numbers beyond those of labels
            raise DataError(f"the labels of {self.name} cannot be read ({str(error).splitlines()[0]})") from None
        return None, ()

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """Decodes one row. Raises ``Unreadable``."""
        return decode(self._bytes(position), channels=self.channels)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """Decodes several rows, one after the other."""
        return one_by_one(self.read, positions)

    def where(self, position: int) -> str:
        """The path that the table gives for the row, else the table's name and the row's number."""
        return self._row(position)[1] or f"{self.name}[{position}]"


def _named(labels: np.ndarray, names: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels with their names, where the table has one for each; else the numbers are the names."""
    top = int(labels.max(initial=-1)) + 1
    if isinstance(names, list) and len(names) >= top and all(isinstance(name, str) for name in names):
        return labels, tuple(names)
    if top <= _MOST_CLASSES:
        return labels, tuple(map(str, range(top)))
    values, place = np.unique(labels, return_inverse=True)  # identifiers, which no list of all below them could hold
    return place - int(values[0] < 0), tuple(map(str, values[values >= 0].tolist()))


def _mapped(file: Path) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    reason = ""
    for opened in (pa.ipc.open_stream, pa.ipc.open_file):
        try:
            return opened(pa.memory_map(str(file))).read_all()
        except Exception as error:  # a damaged file can raise nearly anything
            reason = _line(error)
    raise DataError(f"{file} is not an Arrow file ({reason})")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` noted of the columns: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def image_column(schema: Any, name: str) -> str:
    """The column that holds encoded images: what `datasets` marks as one, else by its name among those of bytes."""
    kinds = {column: str(kind) for column, kind in zip(schema.names, schema.types, strict=True)}
    marks = {column: _features(schema).get(column, {}).get("_type", "Image") for column in kinds}
    bytes_in = [c for c, kind in kinds.items() if kind.startswith(_ENCODED)]
    fits = [c for c in bytes_in if marks[c] in ("Image", "Value")]  # not Audio, not Video
    marked = [c for c in fits if _features(schema).get(c, {}).get("_type") == "Image"]
    named = [c for c in _IMAGES if c in fits]
    if not (marked or named or len(fits) == 1):
        columns = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise DataError(f"no column of images in {name}; it has {columns}")
    return next((c for c in named if c in marked), (marked or named or fits)[0])


def open_tables(files: Sequence[Path], *, name: str, channels: int | None = None) -> Table:
    """The images of parquet and Arrow ``files``, in order, as one source."""
    return Table(
        [file if file.suffix == ".arrow" else _rewritten(file) for file in files], name=name, channels=channels
    )


def _rewritten(file: Path) -> Path:
    """The Arrow file in the cache that holds the image and label columns of a parquet file; written if need be."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    stat = file.stat()
    key = digest(os.path.realpath(file), f"{stat.st_size} {stat.st_mtime_ns}")
    path = cache_folder("tables") / f"{file.stem}-{key}.arrow"
    if path.exists():
        return path
    with _reading(file):
        parquet = pq.ParquetFile(file)
    with parquet:
        with _reading(file):
            schema = parquet.schema_arrow
            image = image_column(schema, str(file))
            columns = [image, *(name for name in schema.names if name.lower() in _LABELS and name != image)]
            kept = pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
            batches = parquet.iter_batches(_ROWS, columns=columns)
        with beside(path) as new, pa.OSFile(str(new), "wb") as sink, pa.ipc.new_stream(sink, kept) as writer:
            while True:
                with _reading(file):  # what fails here is the file's fault, what fails at writing the disk's
                    batch = next(batches, None)
                    ordered = None if batch is None else batch.select(columns)
                if ordered is None:
                    return path
                writer.write_batch(ordered)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"{file} cannot be read as parquet ({_line(error)})") from None


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The parquet and Arrow files under ``folder`` by the split that their names speak of ("train" where none does)."""
    files: dict[str, list[Path]] = {}
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".arrow") and p.is_file()):
        named = split_of(str(file.relative_to(folder).with_suffix("")))
        files.setdefault(named or "train", []).append(file)
    return files


def hub_files(name: str) -> dict[str, list[Path]]:
    """Downloads the data set ``owner/name`` or ``owner/name:config`` from the Hub; its Arrow files by split."""
    import datasets  # noqa: PLC0415

    path, _, config = name.partition(":")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are told once, by the error below
    try:
        found = datasets.load_dataset(path, config or None, cache_dir=str(cache_folder("datasets")))
    except Exception as error:  # no such name, no network, a config to be chosen: `datasets` says which
        reason = str(error).partition("\n")[0]
        raise DataError(f"cannot get '{name}' from the Hub, and no file or folder has that name: {reason}") from None
    return {str(split): [Path(f["filename"]) for f in part.cache_files] for split, part in dict(found).items()}
