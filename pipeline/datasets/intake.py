"""Pass 1: decode every row once, convert it to the declared form and write shards with everything that decisions need.

    part-00000.parquet, …   SHARD rows each: path, name, label, split, group, sources, image (PNG), pixel_hash, thumbnail,
                            reason (why a row is set aside; then image, pixel_hash and thumbnail are null), region (PNG of a
                            mask), region_reason (why its mask is set aside)

A shard is written atomically and holds rows i SHARD … (i + 1) SHARD of its source, so a killed run resumes after its last
whole shard. A shard bounds the memory, whatever the number of rows. A photograph is decoded once for all its parts in a shard.
Large images are decoded in threads, since the codecs
release the lock. With small ones the threads would only wait for it (measured: 28 x 28, 0.10 ms per image alone, 0.25 ms with
4 threads).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.config import Data
from pipeline.core import images, work
from pipeline.datasets.decode import (
    Region,
    Unreadable,
    bring_parts_to_form,
    bring_to_form,
    mask_to_form,
    strict_pillow,
    upright,
)
from pipeline.datasets.rows import Row
from pipeline.encoders.base import Encoder

SHARD = 1024
PROBE, SLOW = 16, 0.002  # files timed in each shard; seconds per file from which threads pay
SHARDS = pa.schema(
    [
        ("path", pa.string()),
        ("name", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("image", pa.binary()),
        ("pixel_hash", pa.string()),
        ("thumbnail", pa.binary()),
        ("reason", pa.string()),
        ("region", pa.binary()),
        ("region_origin", pa.string()),
        ("region_reason", pa.string()),
    ]
)
DECIDED_ON = ["path", "name", "label", "split", "group", "pixel_hash", "reason", "region_reason"]


def take_in(rows: Iterable[Row], data: Data, encoder: Encoder, folder: Path, what: str) -> list[Path]:
    """Write `rows` as shards into `folder`; shards that exist are kept. Returns the shards in order.

    `encoder` gives the thumbnails: levels, whole numbers in [0, 255].
    """
    rows, shards = iter(rows), list[Path]()
    with strict_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool, progress(what) as bar:
        while batch := list(islice(rows, SHARD)):
            shard = folder / f"part-{len(shards):05d}.parquet"
            if not shard.exists():
                records = _decode(batch, data, encoder, pool)
                work.write(shard, _parquet(pa.Table.from_pylist(records, schema=SHARDS)))
            shards.append(shard)
            bar.update(len(batch))
    return shards


def _decode(batch: list[Row], data: Data, encoder: Encoder, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    files = [list(rows) for _, rows in groupby(batch, lambda row: id(row.read if row.part else row))]
    records, start = partial(_records, data=data, encoder=encoder), perf_counter()
    first = [records(rows) for rows in files[:PROBE]]
    each = pool.map if perf_counter() - start > SLOW * len(first) else map
    return list(chain(*first, *each(records, files[PROBE:])))


def _records(rows: list[Row], *, data: Data, encoder: Encoder) -> list[dict[str, Any]]:
    """The records of one row, or of the parts of one photograph."""
    named = [{key: getattr(row, key) for key in ("path", "name", "label", "split", "group", "sources")} for row in rows]
    try:
        with rows[0].read() as picture:
            form = data.image_size, data.channels, data.resize
            if parts := [row.part for row in rows if row.part]:
                found = bring_parts_to_form(picture, parts, *form)
                return [record | _made_of_part(one, encoder) for record, one in zip(named, found, strict=True)]
            image = bring_to_form(picture, *form)
    except Unreadable as unreadable:
        return [record | {"reason": str(unreadable)} for record in named]
    return [named[0] | _made(image, encoder) | _kept(_region(rows[0], data))]


def _region(row: Row, data: Data) -> Region | str | None:
    """The mask of an image, or the reason why there is none."""
    if row.region is None:
        return None
    try:
        with row.region() as mask:
            return Region(mask_to_form(mask, upright(row.read), data.image_size, data.resize), "given")
    except Unreadable as unreadable:
        return str(unreadable)


def _kept(region: Region | str | None) -> dict[str, Any]:
    """What is kept of a region, or the reason why there is none."""
    if isinstance(region, Region):
        return {"region": images.encode_png(region.mask), "region_origin": region.origin}
    return {"region_reason": region}


def _made_of_part(found: tuple[np.ndarray, Region | str | None] | str, encoder: Encoder) -> dict[str, Any]:
    """What is kept of a part of a photograph and its object's region, or the reason why there is none."""
    if isinstance(found, str):
        return {"reason": found}
    image, region = found
    return _made(image, encoder) | _kept(region)


def _made(image: np.ndarray, encoder: Encoder) -> dict[str, Any]:
    """What is kept of an image uint8 (c, s, s)."""
    thumbnail = encoder.features(image[None])[0].astype(np.uint8).tobytes()
    return {"image": images.encode_png(image), "pixel_hash": images.pixel_hash(image), "thumbnail": thumbnail}


def _parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return bytes(buffer.getvalue())


def columns(shards: list[Path]) -> pa.Table:
    """The columns DECIDED_ON of all rows, without pixels."""
    empty = pa.schema([SHARDS.field(name) for name in DECIDED_ON]).empty_table()
    return pa.concat_tables([empty, *(pq.read_table(shard, columns=DECIDED_ON) for shard in shards)])


def set_aside(table: pa.Table) -> list[dict[str, str]]:
    """The path and the reason of each row of `columns` that could not be read, and of each whose mask could not be used."""
    odd = table.filter(pc.is_valid(table["reason"])).select(["path", "reason"]).to_pylist()
    unmasked = table.filter(pc.is_valid(table["region_reason"])).select(["path", "region_reason"]).to_pylist()
    return [*odd, *({"path": row["path"], "reason": f"its mask is set aside: {row['region_reason']}"} for row in unmasked)]


def thumbnails(shards: list[Path], folder: Path) -> np.ndarray:
    """Thumbnails (m, d) of the m readable rows, as a memory map of a file in `folder`."""
    file, count = folder / ".thumbnails", 0
    with work.storage(file), open(file, "wb") as stream:
        for shard in shards:
            made = pq.read_table(shard, columns=["thumbnail"])["thumbnail"].drop_null().to_pylist()
            stream.writelines(made)
            count += len(made)
    return np.memmap(file, np.uint8, "r", shape=(count, file.stat().st_size // count)) if count else np.empty((0, 1), np.uint8)


def state(*paths: Path) -> str:
    """Hash of name, size and time of every file in or at `paths`. It tells whether unfinished work still belongs to them."""
    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        for place, below, names in os.walk(path):
            below.sort()
            for file in (Path(place, name) for name in sorted(names)):
                digest.update(_state(file))
        digest.update(_state(path) if path.is_file() else b"")
    return digest.hexdigest()


def _state(file: Path) -> bytes:
    stat = file.lstat()
    return b"%s\0%d\0%d\0" % (os.fsencode(file), stat.st_size, stat.st_mtime_ns)


def progress(what: str) -> tqdm[Any]:
    """A progress count of images on stderr: live on a terminal, a line every ten seconds elsewhere."""
    live = sys.stderr.isatty()
    return tqdm(desc=what, unit=" images", mininterval=0.5 if live else 10.0, file=sys.stderr)
