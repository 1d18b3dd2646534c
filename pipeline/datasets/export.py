"""A pool of synthetic images as a plain ImageFolder: OUT/CLASS/SAMPLE_ID.png, with the bytes of the pool.

Pools and their checks are read in batches of rows; only the names of accepted rows are kept in memory. The folder appears
whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import work
from pipeline.core.manifest import SCHEMA
from pipeline.errors import DataError, InputError

BATCH = 1024
COLUMNS = SCHEMA.append(pa.field("accepted", pa.bool_()))  # of pools and of their checks


def export(pool: Path, checked: Path, out: Path, *, everything: bool = False) -> dict[str, int]:
    """Write the accepted images of the folder `pool` (all images if `everything`) into the new folder `out`.

    `checked` is the folder with the pool's images.parquet. Returns the number of images in each class folder. Raises
    InputError if `out` is in use, and DataError if `pool` or `checked` is missing or torn.
    """
    shards = sorted(pool.glob("*.parquet"))
    if not shards:
        raise DataError(
            f"{pool} holds no pool", expected="data/pools/GENERATOR of a project", remedy="run `tailforge run` first"
        )
    return write(shards, None if everything else [checked / "images.parquet"], out)


def write(
    shards: Sequence[Path], checked: Sequence[Path] | None, out: Path, *, only: Collection[str] | None = None
) -> dict[str, int]:
    """Write the images of `shards` that `checked` accepts (all images if it is None) into the new folder `out`.

    `only` restricts the classes; a class has the same folder with and without it. Returns and raises as `export`.
    """
    vacant(out)
    accepted = None if checked is None else accepted_ids(checked)
    folders = folder_names(sorted({row["label"] for row in rows(shards, ["label"])}))
    folders = {label: folder for label, folder in folders.items() if only is None or label in only}
    counts = Counter[str]()
    building = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.partial")
    try:
        with work.storage(out):
            for folder in folders.values():
                (building / folder).mkdir(parents=True)
            for row in rows(shards, ["sample_id", "image", "label"]):
                if row["label"] in folders and (accepted is None or row["sample_id"] in accepted):
                    folder = folders[row["label"]]
                    (building / folder / f"{_safe(row['sample_id'])}.png").write_bytes(row["image"])
                    counts[folder] += 1
            building.mkdir(parents=True, exist_ok=True)
            os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {folder: counts[folder] for folder in folders.values()}


def vacant(out: Path) -> None:
    """Raise InputError if `out` is in use."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty", expected="a new or an empty folder", remedy="choose another --out")


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """{class: a unique folder name of letters, digits, `_`, `-` and `.`, never hidden}. Most classes keep their names."""
    names: dict[str, str] = {}
    taken = set[str]()
    for label in sorted(classes, key=lambda label: (_safe(label) != label, label)):
        name, n = _safe(label), 2
        while name.casefold() in taken:
            name, n = f"{_safe(label)}-{n}", n + 1
        taken.add(name.casefold())
        names[label] = name
    return {label: names[label] for label in classes}


def _safe(name: str) -> str:
    return re.sub(r"^\.|[^\w.-]", "_", name)[:100] or "_"


def accepted_ids(checked: Sequence[Path]) -> set[str]:
    """sample_ids of the accepted images in the files images.parquet. Raises DataError."""
    return {row["sample_id"] for row in rows(checked, ["sample_id", "accepted"]) if row["accepted"]}


def rows(files: Sequence[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The given columns of the rows of Parquet files, with one batch in memory at a time. Raises DataError."""
    try:
        for file in files:
            with pq.ParquetFile(file) as parquet:
                form = pa.schema([COLUMNS.field(name) for name in columns])
                for batch in parquet.iter_batches(BATCH, columns=columns):
                    whole = batch.select(columns).cast(form)
                    if lacking := [name for name in columns if whole.column(name).null_count]:
                        raise KeyError(f"rows without {', '.join(lacking)}")
                    yield from whole.to_pylist()
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: {error}", expected="a file written by tailforge", remedy="run `tailforge run` again"
        ) from None
