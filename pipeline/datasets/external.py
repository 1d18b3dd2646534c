"""Synthetic images made elsewhere: renders, another tool, another model.

    path/CLASS/…                class folders, as in folder.py
    path/*.parquet              columns image (the bytes of an encoded file), label and optionally sources (ids of the
                                train images it came from)

They pass through the same decoding as real images, so they differ from real ones only in what they show.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL.Image import Image

from pipeline.datasets.decode import opened
from pipeline.datasets.folder import walk
from pipeline.datasets.rows import Row, existing_folder, text
from pipeline.errors import DataError


def rows(path: Path, classes: list[str]) -> Iterator[Row]:
    """The images under `path`, data.external. Raises DataError if there are none or a label is not in `classes`."""
    root = existing_folder(path, "data.external")
    files = sorted(root.glob("*.parquet"))
    for row in _tables(files) if files else walk(root, "data.external"):
        if row.label not in classes:
            raise DataError(
                f"external image {row.path!r} has label {row.label!r}",
                expected=f"one of {', '.join(classes)}",
                remedy="rename or remove it",
            )
        yield row


def _tables(files: list[Path]) -> Iterator[Row]:
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                names = table.schema_arrow.names
                if not {"image", "label"} <= set(names) or not _fits(table.schema_arrow):
                    raise DataError(
                        f"{text(file)} has the columns {', '.join(names)}",
                        expected="image (bytes of an encoded file), label and optionally sources",
                        remedy="write it again",
                    )
                wanted = [name for name in ("image", "label", "sources") if name in names]
                number = 0
                for batch in table.iter_batches(batch_size=256, columns=wanted):
                    for record in batch.to_pylist():
                        read = partial(_opened, record["image"] or b"")
                        sources = record.get("sources")
                        known = None if sources is None else tuple(map(str, sources))
                        name = f"{text(file.name)}#{number}"
                        yield Row(name, name, str(record["label"]), read, sources=known)
                        number += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{text(file)}: {error}", expected="a Parquet file", remedy="write it again") from None


def _fits(schema: pa.Schema) -> bool:
    """Whether images are bytes and sources, if any, are lists of ids."""
    sources = schema.field("sources").type if "sources" in schema.names else pa.list_(pa.string())
    fits = pa.types.is_binary(schema.field("image").type) and (pa.types.is_list(sources) or pa.types.is_null(sources))
    return bool(fits)


def _opened(data: bytes) -> AbstractContextManager[Image]:
    return opened(io.BytesIO(data))
