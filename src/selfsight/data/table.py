"""Images in Arrow tables: parquet files, Arrow files, what `datasets` saved to disk, and Hub names.

Random access wants uncompressed rows, so parquet is written once, its image and label columns only, into one Arrow file
in the cache folder, which is then memory-mapped: reading a row copies that row's bytes and nothing else. Hub data sets
lie there already as Arrow files of `datasets`, which is imported only for them.
"""

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Sequence
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
_ROWS = 256  # a record batch: what is held in memory while parquet is rewritten


class Table:
    """The images in one column of Arrow files, memory-mapped; it pickles as their paths."""

    def __init__(self, files: Sequence[Path], *, name: str, channels: int | None = None) -> None:
        self.files, self.name = list(files), name
        self._map()
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
        self._chunks = [chunk for table in tables for chunk in table.column(column).chunks if len(chunk)]
        self._starts = np.cumsum([0, *map(len, self._chunks)]).tolist()
        if len(self) == 0:
            raise DataError(f"{self.name} holds no rows")

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
        return (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)

    def _bytes(self, position: int) -> bytes | str:
        content, path = self._row(position)
        if content is None and path is None:
            raise Unreadable("holds neither bytes nor a path")
        return content if content is not None else str(path)

    def _probe(self, position: int) -> tuple[int, int, int]:
        return probe(self._bytes(position))

    def _labelling(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        column = next((name for name in self._schema.names if name.lower() in _LABELS), None)
        if column is None:
            return None, ()
        parts = [table.column(column) for table in self._tables]
        named = _features(self._schema).get(column, {}).get("names")
        kind = str(parts[0].type)
        if kind.startswith(("int", "uint")):
            labels = np.concatenate([part.fill_null(-1).to_numpy() for part in parts]).astype(np.int64)
            top = int(labels.max(initial=-1)) + 1
            return labels, tuple(named) if named else tuple(map(str, range(top)))
        if "string" in kind:
            return numbered([value or "" for part in parts for value in part.to_pylist()])
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


def _mapped(file: Path) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        pass
    try:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not an Arrow file ({str(error).splitlines()[0]})") from None


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` noted of the columns: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}


def image_column(schema: Any, name: str) -> str:
    """The column that holds encoded images: what `datasets` marks as one, else by its name among those of bytes."""
    kinds = {column: str(schema.field(column).type) for column in schema.names}
    marks = {column: _features(schema).get(column, {}).get("_type", "Image") for column in kinds}
    bytes_in = [
        c for c, kind in kinds.items() if kind in ("binary", "large_binary") or kind.startswith("struct<bytes:")
    ]
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
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            image = image_column(schema, str(file))
            columns = [image, *(name for name in schema.names if name.lower() in _LABELS and name != image)]
            kept = pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
            with beside(path) as new, pa.OSFile(str(new), "wb") as sink, pa.ipc.new_stream(sink, kept) as writer:
                for batch in parquet.iter_batches(_ROWS, columns=columns):
                    writer.write_batch(batch.select(columns))
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} cannot be read as parquet ({str(error).splitlines()[0]})") from None
    return path


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The parquet and Arrow files under ``folder`` by the split that their names speak of ("train" where none does)."""
    files: dict[str, list[Path]] = {}
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".arrow")):
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
