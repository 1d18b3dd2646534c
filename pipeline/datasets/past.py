"""Past: the side of each row in the previous version, so that it stays there when images arrive.

    sides.parquet   version     now | before: the current rows, and those of the version that they were decided on
                    path, sample_id, pixel_hash, side

A split that is drawn again moves train rows to test, and everything that has learned from them must be discarded. So rows
keep their side and their name, and only new rows are drawn.

The same stage reads and replaces the file, and is still a function of its inputs. The file records the `data` of its rows
`now`. If these are the current data, the past is what the file has under `before`. So a stage that is forced, or was killed
after it had replaced the file, decides as it did the first time. Rows that were split with other settings have no past.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Params
from pipeline.core import work
from pipeline.datasets.split import SIDES
from pipeline.errors import DataError

FILE = "sides.parquet"
ROWS = pa.schema([("path", pa.string()), ("sample_id", pa.string()), ("pixel_hash", pa.string()), ("side", pa.int8())])


@dataclass(frozen=True)
class Past:
    """Rows (m,) of the previous version, with ROWS' columns; empty if there was none."""

    table: pa.Table

    def sides(self, pixel_hash: pa.ChunkedArray) -> np.ndarray:
        """Side of each image in the previous version, int (n,); -1 if it is new."""
        index = pc.index_in(pixel_hash, self.table["pixel_hash"].combine_chunks())
        return _filled(self.table["side"].combine_chunks().take(index))

    def names(self, ids: pa.ChunkedArray, paths: pa.ChunkedArray, pixel_hash: pa.ChunkedArray) -> pa.ChunkedArray:
        """`ids` (n,), except that an image with an earlier id at the same path keeps it, as long as all ids differ."""
        own = pc.binary_join_element_wise(paths, pixel_hash, "\0")
        known = pc.binary_join_element_wise(self.table["path"], self.table["pixel_hash"], "\0").combine_chunks()
        kept = pc.coalesce(self.table["sample_id"].combine_chunks().take(pc.index_in(own, known)), ids)
        return kept if pc.count_distinct(kept).as_py() == len(kept) else ids


def _filled(sides: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(sides, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def nothing() -> Past:
    """The past of a first version."""
    return Past(ROWS.empty_table())


def settings(params: Params) -> str:
    """Hash of the settings that decide the form of an image and its side."""
    form = (params.data.image_size, params.data.channels, params.data.resize)
    return work.key(params.seed, form, params.split.model_dump(), params.scarcity.model_dump())


def identity(table: pa.Table, files: list[Path]) -> str:
    """Hash of the rows of a source and of the lists that name them, wherever these are."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in table.to_batches(max_chunksize=1024):
        digest.update("".join(f"{row}\n" for row in batch.to_pylist()).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read(file: Path, settings: str, data: str) -> Past:
    """The past of `data` under `settings`, from the `file` that `write` wrote."""
    if not file.is_file():
        return nothing()
    try:
        table = pq.read_table(file).select(["version", *ROWS.names])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: {error}",
            expected="the previous sides of rows",
            remedy=f"run `dvc checkout {file}`, or remove it: rows are then split again",
        ) from None
    noted = table.schema.metadata or {}
    if noted.get(b"settings") != settings.encode():
        return nothing()
    version = "before" if noted.get(b"data") == data.encode() else "now"
    return Past(table.filter(pc.equal(table["version"], version)).select(ROWS.names))


def write(file: Path, now: pa.Table, past: Past, settings: str, data: str) -> None:
    """Put the rows `now` (ROWS' columns) and those of `past` at `file`."""
    parts = [
        rows.add_column(0, "version", pa.array([version] * len(rows), pa.string()))
        for version, rows in (("now", now), ("before", past.table))
    ]
    table = pa.concat_tables(parts).combine_chunks().replace_schema_metadata({"settings": settings, "data": data})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    work.write(file, bytes(buffer.getvalue()))


def rows(paths: pa.ChunkedArray, ids: pa.ChunkedArray, pixel_hash: pa.ChunkedArray, side: np.ndarray) -> pa.Table:
    """The rows of (n,) that are in train, val or test, with ROWS' columns."""
    table = pa.table([paths, ids, pixel_hash, pa.array(side.astype(np.int8))], schema=ROWS)
    return table.filter(pa.array(side < len(SIDES)))
