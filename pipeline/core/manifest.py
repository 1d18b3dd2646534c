"""Manifest: one row per image, real or synthetic, in one Parquet schema.

    sample_id    unique name
    image        PNG bytes, all of one size and mode
    label        class name
    split        train | val | test | reserve; synthetic rows belong to train
    group        shared by rows of one object, patient or board; splits and intervals respect it
    origin       real | synthetic
    generator    family that made the row; null for real rows
    seed         the image's own seed; null for real rows
    sources      sample_ids of the train rows it came from; null if unknown, empty for real rows
    pixel_hash   hash of the decoded pixels
    region       where its object lies: PNG bytes of a mask of the image's size, 0 or 255; null where that is unknown
    region_origin  given (a mask or an outline was) | box (of a bounding box) | found (without annotation); null with `region`

Rows carry origin and split so that a fit can refuse rows it must not see. `training_tensors` is the only way from a manifest
to the arguments of a fit, and it raises LeakError for any row that is not a train row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import images
from pipeline.errors import DataError, LeakError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image", pa.binary()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("origin", pa.string()),
        ("generator", pa.string()),
        ("seed", pa.int64()),
        ("sources", pa.list_(pa.string())),
        ("pixel_hash", pa.string()),
        ("region", pa.binary()),
        ("region_origin", pa.string()),
    ]
)
LATER = ("region", "region_origin")  # columns that files of older versions lack


@dataclass(frozen=True)
class Manifest:
    """Rows of images. `table` has SCHEMA's columns."""

    table: pa.Table

    @classmethod
    def read(cls, *paths: Path, columns: Sequence[str] | None = None) -> Manifest:
        """The rows of Parquet files, or of all `*.parquet` files of folders in the order of their names.

        Raises DataError if a file is missing, torn or of another schema.
        """
        files = [f for p in paths for f in (sorted(p.glob("*.parquet")) if p.is_dir() else [p])]
        wanted = list(columns or SCHEMA.names)
        try:
            form = pa.schema([SCHEMA.field(n) for n in wanted])
            tables = [_whole(_read(f, wanted)).select(wanted).cast(form) for f in files]
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{', '.join(map(str, paths))}: {error}",
                expected="a Parquet manifest written by tailforge",
                remedy="run `dvc repro` to write it again",
            ) from error
        return cls(pa.concat_tables([form.empty_table(), *tables]))

    @classmethod
    def from_columns(cls, **columns: Iterable[object]) -> Manifest:
        """Rows from one iterable per column of SCHEMA. The caller gives every column but LATER, which are null without."""
        given = {n: pa.array(list(columns[n]), SCHEMA.field(n).type) for n in SCHEMA.names if n not in LATER or n in columns}
        return cls(_whole(pa.table(given)).select(SCHEMA.names).cast(SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """A column as a NumPy array (n,) of str, int or object."""
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False))

    def where(self, mask: np.ndarray) -> Manifest:
        """The rows where the boolean `mask` (n,) holds."""
        return Manifest(self.table.filter(pa.array(np.asarray(mask, dtype=bool))))

    def take(self, indices: np.ndarray) -> Manifest:
        """The rows at integer `indices`, in that order; indices may repeat."""
        return Manifest(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))))

    def counts(self, classes: Sequence[str]) -> np.ndarray:
        """Number of rows of each class, int64 (k,)."""
        labels = self.column("label")
        return np.array([(labels == c).sum() for c in classes], dtype=np.int64)

    def images(self) -> Tensor:
        """uint8 (n, c, h, w). Raises DataError if bytes are not an image, or an image differs in size or mode."""
        try:
            return images.decode_all(self.table["image"].to_pylist())
        except (OSError, SyntaxError, ValueError, TypeError) as error:  # what Pillow raises on torn bytes, NumPy on other sizes
            raise DataError(
                f"an image of a manifest: {error}", expected="PNGs of one size", remedy="run `dvc repro` to write it again"
            ) from error

    def regions(self) -> Tensor:
        """Where objects lie, uint8 (n, 1, h, w), 0 or 255; 0 everywhere in rows where that is unknown. Raises DataError."""
        import torch

        rows = np.flatnonzero(self.table["region"].is_valid().to_numpy())
        height, width = images.decode_png(self.table["image"][0].as_py()).shape[1:] if len(self) else (0, 0)
        out = torch.zeros(len(self), 1, height, width, dtype=torch.uint8)
        if len(rows):
            try:
                out[torch.from_numpy(rows)] = images.decode_all(self.take(rows).table["region"].to_pylist())
            except (OSError, SyntaxError, ValueError, TypeError, RuntimeError) as error:
                raise DataError(
                    f"a region of a manifest: {error}", expected="masks of the images' size", remedy="run `dvc repro`"
                ) from error
        return out

    def targets(self, classes: Sequence[str]) -> Tensor:
        """Index of each row's class in `classes`, int64 (n,). Raises DataError for any other label."""
        import torch

        index = {c: i for i, c in enumerate(classes)}
        try:
            return torch.tensor([index[label] for label in self.table["label"].to_pylist()], dtype=torch.int64)
        except KeyError as error:
            raise DataError(f"label {error}", expected=f"one of {', '.join(classes)}") from error

    def require_train(self, purpose: str) -> None:
        """Raise LeakError unless every row is of split train.

        `arms` checks the sources of synthetic rows: it sees them and the real train rows.
        """
        splits = set(self.table["split"].unique().to_pylist())
        if splits - {"train"}:
            raise LeakError(
                f"{purpose} received rows of split {', '.join(sorted(map(str, splits - {'train'})))}",
                expected="train rows only",
                remedy="fit on data/prepared/train.parquet",
            )

    def training_tensors(self, classes: Sequence[str], purpose: str) -> tuple[Tensor, Tensor]:
        """(uint8 images (n, c, h, w), int64 targets (n,)) for a fit. Raises LeakError for any row that is not a train row."""
        self.require_train(purpose)
        return self.images(), self.targets(classes)


def _read(file: Path, wanted: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        there = parquet.schema_arrow.names
        return parquet.read([name for name in wanted if name in there or name not in LATER])


def _whole(table: pa.Table) -> pa.Table:
    """`table` with the columns LATER, null where it has none."""
    for name in LATER:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table
