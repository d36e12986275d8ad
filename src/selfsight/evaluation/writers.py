"""Files of features that grow batch by batch: Parquet, or NumPy's format with a CSV beside it. Memory stays flat."""

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from numpy.lib import format as npy

from selfsight.errors import UserError

ROWS = 4096  # of a row group: small enough to be read one at a time


def files_of(path: Path, suffix: str) -> tuple[Path, ...]:
    """The files that features in the format of ``suffix`` make up, the one with the features first."""
    if suffix == ".parquet":
        return (path,)
    if suffix == ".npy":
        return (path, path.with_name(path.name + ".csv"))
    raise UserError(f"cannot write features as '{suffix}'; end --out in .parquet or .npy")


def open_writer(path: Path, suffix: str, facts: Mapping[str, str]) -> "ParquetFile | NpyFile":
    """A writer into ``path`` for the format that ``suffix`` names."""
    files = files_of(path, suffix)
    return ParquetFile(files, facts) if suffix == ".parquet" else NpyFile(files)


class ParquetFile:
    """Columns position, where, label (null where unknown) and feature (a list of fixed size, nested for patches)."""

    def __init__(self, files: tuple[Path, ...], facts: Mapping[str, str]) -> None:
        self.files = files
        self.facts = dict(facts)
        self.writer: pq.ParquetWriter | None = None

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.files[0], schema, compression="zstd")
        return self.writer

    def add(
        self, x: Float[np.ndarray, "n ..."], positions: Int[np.ndarray, " n"], where: Sequence[str], labels: np.ndarray
    ) -> None:
        values: Any = pa.array(np.ascontiguousarray(x, dtype=np.float32).reshape(-1))
        for size in reversed(x.shape[1:]):
            values = pa.FixedSizeListArray.from_arrays(values, size)
        table = pa.table(
            {
                "position": pa.array(positions),
                "where": pa.array(list(where), pa.string()),
                "label": pa.array(labels, pa.int64(), mask=labels < 0),
                "feature": values,
            }
        ).replace_schema_metadata(self.facts)
        self._open(table.schema).write_table(table, row_group_size=ROWS)

    def append(self, part: Sequence[Path]) -> None:
        """Takes over the rows of another closed file of this kind."""
        with pq.ParquetFile(part[0]) as other:
            writer = self._open(other.schema_arrow)
            for group in range(other.num_row_groups):
                writer.write_table(other.read_row_group(group))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class NpyFile:
    """An array of features, one row an image; the CSV beside it has each row's position, where and label."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self.rows = 0
        self.shape: tuple[int, ...] = ()
        self.array = files[0].open("wb")
        self.table = self.files[1].open("w", newline="", encoding="utf-8")
        csv.writer(self.table, lineterminator="\n").writerow(["position", "where", "label"])

    def _header(self) -> None:
        # NumPy pads headers so that the first axis may grow in place: the last header is as long as the first
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self.shape)}
        self.array.seek(0)
        npy.write_array_header_1_0(self.array, header)
        self.array.seek(0, os.SEEK_END)

    def add(
        self, x: Float[np.ndarray, "n ..."], positions: Int[np.ndarray, " n"], where: Sequence[str], labels: np.ndarray
    ) -> None:
        if not self.rows:
            self.shape = x.shape[1:]
            self._header()
        self.array.write(np.ascontiguousarray(x, dtype="<f4").tobytes())
        rows = zip(positions.tolist(), where, ("" if label < 0 else label for label in labels.tolist()), strict=True)
        csv.writer(self.table, lineterminator="\n").writerows(rows)
        self.rows += len(x)

    def append(self, part: Sequence[Path]) -> None:
        """Takes over the rows of another closed file of this kind."""
        whole = np.load(part[0], mmap_mode="r", allow_pickle=False)
        if not self.rows:
            self.shape = whole.shape[1:]
            self._header()
        with part[0].open("rb") as other:
            npy.read_magic(other)
            npy.read_array_header_1_0(other)
            shutil.copyfileobj(other, self.array)
        with part[1].open(encoding="utf-8") as other:
            next(other)
            shutil.copyfileobj(other, self.table)
        self.rows += len(whole)

    def close(self) -> None:
        if self.rows:
            self._header()
        self.array.close()
        self.table.close()
