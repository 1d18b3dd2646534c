"""A table of images: CSV or Parquet with the columns path and label, and optionally group and split.

Paths are relative to data.path and may not leave it. A split is train, val or test; empty means train.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Data
from pipeline.datasets.decode import opened
from pipeline.datasets.rows import SPLITS, Row, existing_folder, inside, text
from pipeline.errors import DataError


def rows(data: Data) -> Iterator[Row]:
    """The rows of data.table in its order. Raises DataError if the table, its columns or a row are not as expected."""
    root = existing_folder(Path(data.path), "data.path")
    table = root / data.table
    if not data.table or not table.is_file():
        raise DataError(
            f"data.table={data.table!r} is no file in {data.path}",
            expected="a CSV or Parquet file",
            remedy="set data.table in params.yaml",
        )
    for number, record in enumerate(_records(table), start=1):
        where = f"{text(table)}, row {number}"
        path, label, split = record["path"], record["label"], record.get("split") or "train"
        if not path or not label:
            raise DataError(f"{where}: path {path!r}, label {label!r}", expected="both", remedy="fill in or remove the row")
        if split not in SPLITS:
            raise DataError(f"{where}: split {split!r}", expected="train, val or test", remedy="correct the row")
        if "\0" in path or not inside(root / path, root):
            raise DataError(f"{where}: path {path!r} leaves {data.path}", expected="a path inside it", remedy="correct the row")
        own_split = SPLITS[split] if "split" in record else None
        read = partial(opened, root / path)
        yield Row(text(path), text(Path(path).stem), label, read, own_split, record.get("group") or None)


def _records(table: Path) -> Iterator[Mapping[str, str]]:
    read = _parquet if table.suffix.lower() in (".parquet", ".pq") else _csv
    try:
        yield from read(table)
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{text(table)}: {error}", expected="a CSV (UTF-8) or Parquet table", remedy="write it again") from None


def _csv(table: Path) -> Iterator[Mapping[str, str]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        _require(table, reader.fieldnames or ())
        for record in reader:
            yield {name: value for name, value in record.items() if isinstance(name, str)}


def _parquet(table: Path) -> Iterator[Mapping[str, str]]:
    with pq.ParquetFile(table) as file:
        _require(table, names := file.schema_arrow.names)
        wanted = [name for name in ("path", "label", "group", "split") if name in names]
        for batch in file.iter_batches(batch_size=4096, columns=wanted):
            for record in batch.to_pylist():
                yield {name: "" if value is None else str(value) for name, value in record.items()}


def _require(table: Path, names: object) -> None:
    present = list(names) if isinstance(names, list | tuple) else []
    if not {"path", "label"} <= set(present):
        raise DataError(
            f"{text(table)} has the columns {', '.join(map(str, present)) or 'none'}",
            expected="path, label and optionally group, split",
            remedy="rename its columns",
        )
