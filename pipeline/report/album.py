"""Pictures for the report: drawn at random, small, and few, however many there are.

Which pictures of a class are shown is decided by a hash of their sample_ids, so that nobody chose them and two reports on
the same data agree. Tables are read in batches: memory follows the number of pictures shown, not the number of rows.
"""

from __future__ import annotations

import base64
import heapq
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pipeline.core.seeds import derive
from pipeline.errors import DataError

SIDE = 96  # pixels; larger images become thumbnails
PER_CLASS = 10  # pictures in a strip
PER_GROUP = 6  # rejected pictures of one class and check


@dataclass(frozen=True)
class Picture:
    """One image in the page. `uri` is data; width and height are in CSS pixels."""

    sample_id: str
    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class Candidate:
    """A synthetic image by name, before its picture is fetched."""

    sample_id: str
    nearest: str | None
    distance: float | None


@dataclass
class Scan:
    """What one pass over a family's images.parquet found."""

    accepted: Counter[str] = field(default_factory=Counter)  # per class
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)  # per (check, class)
    accepted_picks: dict[str, list[Candidate]] = field(default_factory=dict)
    rejected_picks: dict[tuple[str, str], list[Candidate]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """The value a check measured, and what it allowed."""

    value: float | None
    low: float | None
    high: float | None


def batches(paths: Sequence[Path], columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """The rows of Parquet files, `size` at a time. Raises DataError where a file is torn or of another form.

    Without pre-buffering and with a small buffer a row group is read page by page; by default it is read whole.
    """
    for path in paths:
        try:
            with pq.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
                if missing := set(columns) - set(file.schema_arrow.names):
                    raise pa.ArrowKeyError(f"no column {', '.join(sorted(missing))}")
                yield from file.iter_batches(batch_size=size, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path}: {error}",
                expected=f"a Parquet file with {', '.join(columns)}",
                remedy="run `dvc repro` to write it again",
            ) from error


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """The rows of a Parquet file as tuples in the order of `columns`. Raises DataError."""
    for part in batches([path], columns, 4096):
        yield from zip(*(part.column(name).to_pylist() for name in columns), strict=True)


class _Draw:
    """The `size` items whose names have the smallest hash: a random draw that depends on the names alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.heap: list[tuple[int, str, Candidate]] = []

    def offer(self, item: Candidate) -> None:
        entry = (-derive(0, "report", item.sample_id), item.sample_id, item)
        if len(self.heap) < self.size:
            heapq.heappush(self.heap, entry)
        elif entry[:2] > self.heap[0][:2]:
            heapq.heapreplace(self.heap, entry)

    def items(self) -> list[Candidate]:
        return [item for _, _, item in sorted(self.heap, key=lambda e: e[:2], reverse=True)]


def draw_real(train: Path, classes: Collection[str]) -> dict[str, list[Candidate]]:
    """PER_CLASS real train images of each of `classes`."""
    draws = {name: _Draw(PER_CLASS) for name in classes}
    for sample_id, label in rows(train, ["sample_id", "label"]):
        if label in draws:
            draws[str(label)].offer(Candidate(str(sample_id), None, None))
    return {name: draw.items() for name, draw in draws.items()}


def scan(table: Path, classes: Collection[str]) -> Scan:
    """Count the accepted and the rejected images of a family, and draw pictures: accepted ones of `classes`, rejected ones of
    every check."""
    found = Scan()
    accepted = {name: _Draw(PER_CLASS) for name in classes}
    rejected: dict[tuple[str, str], _Draw] = {}
    columns = ["sample_id", "label", "accepted", "reason", "nearest", "nearest_distance"]
    for sample_id, label, passed, reason, nearest, distance in rows(table, columns):
        name = str(label)
        item = Candidate(str(sample_id), None if nearest is None else str(nearest), _number(distance))
        if passed:
            found.accepted[name] += 1
            if name in accepted:
                accepted[name].offer(item)
        else:
            key = (str(reason), name)
            found.rejected[key] += 1
            rejected.setdefault(key, _Draw(PER_GROUP)).offer(item)
    found.accepted_picks = {name: draw.items() for name, draw in accepted.items()}
    found.rejected_picks = {key: draw.items() for key, draw in rejected.items()}
    return found


def limits(table: Path, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Limit]:
    """Value and band of each wanted (sample_id, check) in a checks.parquet."""
    found: dict[tuple[str, str], Limit] = {}
    for part in among(batches([table], ["sample_id", "check", "value", "low", "high"], 65_536), {name for name, _ in wanted}):
        for row in part:
            if (row["sample_id"], row["check"]) in wanted:
                found[row["sample_id"], row["check"]] = Limit(row["value"], row["low"], row["high"])
    return found


def among(parts: Iterable[pa.RecordBatch], sample_ids: Collection[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each batch whose sample_id is wanted."""
    names = pa.array(sorted(sample_ids), pa.string())
    for part in parts:
        yield part.filter(pc.is_in(part.column("sample_id"), value_set=names)).to_pylist()


def fetch(paths: Sequence[Path], wanted: Collection[str]) -> dict[str, Picture]:
    """The pictures of the sample_ids `wanted` in manifests; those that are not there, or no image, are left out."""
    found: dict[str, Picture] = {}
    for part in among(batches(paths, ["sample_id", "image"], 64), wanted):
        for row in part:
            if shown := picture(row["sample_id"], row["image"]):
                found[row["sample_id"]] = shown
    return found


def picture(sample_id: str, data: bytes | None) -> Picture | None:
    """A manifest's PNG as a picture of the page; None where the bytes are no image, as a check will have said.

    Small images keep their pixels and are enlarged by a whole number; large ones are brought to SIDE. The pixels are
    always encoded again, as JPEG where a PNG of them would be heavy.
    """
    try:
        file = Image.open(io.BytesIO(data or b""), formats=["PNG"])
        image = file.convert("L" if file.mode in ("1", "L", "I;16") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    kind, encoded = "png", _encode(image, "PNG", optimize=True)
    if len(encoded) > 3000:
        kind, encoded = "jpeg", _encode(image, "JPEG", quality=82)
    factor = max(1, round(64 / max(image.size)))
    uri = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
    return Picture(sample_id, uri, image.width * factor, image.height * factor, factor > 1)


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


@dataclass
class Budget:
    """Bytes of pictures that a part of the page may still hold."""

    left: int

    def take(self, pictures: Sequence[Picture]) -> bool:
        """Whether all of these still fit; they are then counted."""
        size = sum(len(p.uri) for p in pictures)
        if size > self.left:
            return False
        self.left -= size
        return True
