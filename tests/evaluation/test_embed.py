"""embed: the features that extract gives, in a file, with where and label; whole or not there."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from selfsight.data.protocol import Source
from selfsight.errors import UserError
from selfsight.evaluation import embed as module
from selfsight.evaluation.embed import embed
from selfsight.evaluation.features import Features, extract
from selfsight.evaluation.writers import NpyFile, ParquetFile, files_of, open_writer
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]
PLAIN = plain_view(16, None)


def expected(encoder: nn.Module, source: Source, kind: str = "pooled") -> Features:
    return extract(encoder, source, PLAIN, kind=kind)  # pyright: ignore[reportArgumentType]


def test_parquet_holds_features_where_and_label(encoder, pictures: Make, tmp_path: Path) -> None:
    source, out = pictures(11), tmp_path / "deep" / "f.parquet"
    source.labels = np.where(np.arange(11) == 4, -1, source.labels)
    got = embed(encoder, data=source, out=out, batch_size=4, plain=PLAIN)
    table = pq.read_table(out)
    features = np.stack(table["feature"].to_numpy(zero_copy_only=False))
    assert (got.rows, got.shape, got.skipped) == (11, (32,), 0)
    assert np.array_equal(features, expected(encoder, source).x.numpy())
    assert table["where"].to_pylist() == [f"picture-{i}.png" for i in range(11)]
    assert table["position"].to_pylist() == list(range(11))
    assert table["label"].to_pylist() == [None if y < 0 else y for y in source.labels.tolist()]
    assert table.schema.metadata[b"kind"] == b"pooled"
    assert list(out.parent.iterdir()) == [out]


def test_npy_is_an_array_and_a_csv(encoder, pictures: Make, tmp_path: Path) -> None:
    source, out = pictures(11, broken=(2,)), tmp_path / "f.npy"
    skipped: list[tuple[int, str, str]] = []
    got = embed(encoder, data=source, out=out, batch_size=3, plain=PLAIN, on_skip=lambda *facts: skipped.append(facts))
    array = np.load(out, mmap_mode="r", allow_pickle=False)
    with (tmp_path / "f.npy.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert (got.rows, got.skipped) == (10, 1)
    assert skipped == [(2, "picture-2.png", "cut short")]
    assert np.array_equal(array, expected(encoder, source).x.numpy())
    assert [int(row["position"]) for row in rows] == [0, 1, *range(3, 11)]
    assert rows[2] == {"position": "3", "where": "picture-3.png", "label": str(source.labels[3])}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npy", "f.npy.csv"]


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_patch_tokens_keep_their_grid(encoder, pictures: Make, tmp_path: Path, suffix: str) -> None:
    source, out = pictures(5), tmp_path / f"f{suffix}"
    got = embed(encoder, data=source, out=out, kind="patches", batch_size=2, plain=PLAIN)
    assert got.shape == (16, 8)
    wanted = expected(encoder, source, "patches").x.numpy()
    if suffix == ".npy":
        assert np.array_equal(np.load(out), wanted)
    else:
        assert np.array_equal(np.array(pq.read_table(out)["feature"].to_pylist(), dtype=np.float32), wanted)


def test_a_subset_by_key(encoder, pictures: Make, tmp_path: Path) -> None:
    assert embed(encoder, data=pictures(20), out=tmp_path / "f.npy", limit=6, plain=PLAIN).rows == 6


def test_a_failure_leaves_the_file_that_was_there(
    encoder, pictures: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.parquet"
    embed(encoder, data=pictures(6), out=out, plain=PLAIN)
    before = out.read_bytes()

    def breaks(self: ParquetFile, *args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ParquetFile, "add", breaks)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        embed(encoder, data=pictures(9), out=out, plain=PLAIN)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_another_format_is_refused_before_any_work(encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_data", lambda *args, **kwargs: pytest.fail("opened before it was refused"))
    with pytest.raises(UserError, match=r"cannot write features as '.csv'; end --out in .parquet or .npy"):
        embed(encoder, data="any", out=tmp_path / "f.csv", plain=PLAIN)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_parts_join_in_order(tmp_path: Path, suffix: str) -> None:
    x = torch.randn(9, 4).numpy()
    where, labels = [f"i{i}" for i in range(9)], np.array([0, 1, -1] * 3)
    parts = []
    for number, rows in enumerate((range(4), range(4, 4), range(4, 9))):
        part = open_writer(tmp_path / f"part{number}", suffix, {})
        for i in rows:
            part.add(x[i : i + 1], np.array([i]), where[i : i + 1], labels[i : i + 1])
        parts.append(part)
    for part in parts[1:]:
        part.close()
    parts[0].append(files_of(tmp_path / "part2", suffix))
    parts[0].close()
    if isinstance(parts[0], NpyFile):
        assert np.array_equal(np.load(tmp_path / "part0"), x)
        table = (tmp_path / "part0.csv").read_text().splitlines()
        assert table[0] == "position,where,label"
        assert table[3] == "2,i2,"
        assert table[9] == "8,i8,"
    else:
        table = pq.read_table(tmp_path / "part0")
        assert np.array_equal(np.stack(table["feature"].to_numpy(zero_copy_only=False)), x)
        assert table["where"].to_pylist() == where
