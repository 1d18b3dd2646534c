"""Pass 2: stream the rows of the shards, as decided, into the files of data/prepared.

Rows keep the order of their source, and a file is a function of the rows alone.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Data
from pipeline.core import work
from pipeline.core.manifest import LATER, SCHEMA
from pipeline.datasets.decide import Decision
from pipeline.datasets.split import FILES, SIDES, TEST, TRAIN, VAL

TAKEN = ("image", "label", "pixel_hash")
ROW_GROUP = 1024
LISTED = 100  # rows listed for each reason; totals count all rows


def write_manifest(path: Path, tables: Iterator[pa.Table]) -> str:
    """Stream `tables` with SCHEMA's columns to `path`. Returns a hash of the columns that identify the rows."""
    digest, waiting = hashlib.blake2b(digest_size=16), SCHEMA.empty_table()
    with work.storage(path), open(path, "wb") as file:
        with pq.ParquetWriter(file, SCHEMA) as writer:
            for table in tables:
                identity = (table[name].to_pylist() for name in ("sample_id", "label", "split", "group", "pixel_hash"))
                digest.update("".join(f"{row}\n" for row in zip(*identity, strict=True)).encode())
                waiting = pa.concat_tables([waiting, table])
                if len(waiting) >= ROW_GROUP:
                    writer.write_table(waiting.combine_chunks())
                    waiting = SCHEMA.empty_table()
            if len(waiting):
                writer.write_table(waiting.combine_chunks())
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def real_rows(shards: list[Path], decision: Decision, side: int) -> Iterator[pa.Table]:
    """The rows of `shards` that the decision puts on `side`."""
    start = 0
    for shard in shards:
        stop = start + pq.read_metadata(shard).num_rows
        here = np.flatnonzero(decision.side[start:stop] == side)
        if len(here):
            rows, taken = here + start, pq.read_table(shard, columns=[*TAKEN, *LATER]).take(here)
            ids, groups = decision.sample_ids.take(rows), decision.sample_ids.take(decision.group[rows])
            yield _table(taken, sample_id=ids, group=groups, split=FILES[side], origin="real", sources=[])
        start = stop


def external_rows(shards: list[Path]) -> Iterator[pa.Table]:
    """The readable rows of shards of images made elsewhere, as synthetic train rows."""
    for shard in shards:
        taken = pq.read_table(shard, columns=["path", "image", "label", "pixel_hash", "sources", "reason"])
        taken = taken.filter(pc.is_null(taken["reason"]))
        ids = pc.binary_join_element_wise("external", taken["path"], "/")
        yield _table(taken, sample_id=ids, group=ids, split="train", origin="synthetic", generator="external")


def _table(taken: pa.Table, **columns: Any) -> pa.Table:
    """`taken` with SCHEMA's columns: those in `columns` (one value, or one per row), those that it has, else null."""
    values = {**{name: taken[name] for name in taken.column_names if name in SCHEMA.names}, **columns}
    arrays = []
    for column in SCHEMA:
        value = values.get(column.name)
        whole = isinstance(value, pa.Array | pa.ChunkedArray)
        arrays.append(value if whole else pa.array([value] * len(taken), column.type))
    return pa.table(arrays, schema=SCHEMA)


def describe(decision: Decision, data: Data, set_aside: list[dict[str, str]], fingerprint: str) -> dict[str, Any]:
    """The contents of dataset.json: the rows that are kept, and the rows that are not, with reasons."""
    listed: Counter[str] = Counter()
    left_out = []
    for row, reason in sorted(decision.reasons.items()):
        listed[reason] += 1
        if listed[reason] <= LISTED:
            left_out.append({"sample_id": decision.sample_ids[row].as_py(), "reason": reason})
    return {
        "classes": decision.classes,
        "image_size": data.image_size,
        "channels": data.channels,
        "counts": {
            SIDES[side]: dict(zip(decision.classes, decision.counts(side).tolist(), strict=True)) for side in (TRAIN, VAL, TEST)
        },
        "source": data.source,
        "groups_known": decision.groups_known,
        "official_test": decision.official_test,
        "set_aside": set_aside[:LISTED],
        "n_set_aside": len(set_aside),
        "left_out": left_out,
        "n_left_out": len(decision.reasons),
        "near_duplicates": decision.near_duplicates,
        "warnings": decision.warnings,
        "fingerprint": fingerprint,
    }
