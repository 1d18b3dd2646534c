"""Rows carry origin and split, and a fit refuses what it must not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core import images
from pipeline.core.manifest import SCHEMA, Manifest
from pipeline.errors import DataError, LeakError


def rows(splits: list[str], labels: list[str] | None = None) -> Manifest:
    n = len(splits)
    pixels = torch.randint(0, 256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    return Manifest.from_columns(
        sample_id=[f"s{i}" for i in range(n)], image=images.encode_all(pixels), label=labels or ["a"] * n, split=splits,
        group=[f"g{i}" for i in range(n)], origin=["real"] * n, generator=[None] * n, seed=[None] * n, sources=[[]] * n,
        pixel_hash=[images.pixel_hash(p) for p in pixels],
    )  # fmt: skip


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_fit_on_any_row_that_is_not_train_raises(split: str) -> None:
    assert len(rows(["train", "train"]).training_tensors(["a"], "a test")[0]) == 2
    with pytest.raises(LeakError, match=f"a test received rows of split {split}"):
        rows(["train", split, "train"]).training_tensors(["a"], "a test")


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    written = rows(["train", "val"])
    pq.write_table(written.table, tmp_path / "part-0.parquet")
    pq.write_table(written.table, tmp_path / "part-1.parquet")
    read = Manifest.read(tmp_path)
    assert len(read) == 4 and read.table.schema.equals(SCHEMA)
    assert torch.equal(read.images()[:2], written.images())


def test_regions_survive_the_disk_and_files_of_older_versions_have_none(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    known, mask = rows(["train"] * 3), torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[:, 1:3] = 255
    columns = {name: known.table[name].to_pylist() for name in SCHEMA.names}
    columns |= {"region": [None, images.encode_png(mask), None], "region_origin": [None, "given", None]}
    pq.write_table(Manifest.from_columns(**columns).table, tmp_path / "new.parquet")
    pq.write_table(known.table.drop_columns(["region", "region_origin"]), tmp_path / "older.parquet")
    read = Manifest.read(tmp_path)
    assert read.table.schema.equals(SCHEMA) and read.column("region_origin").tolist() == [None, "given", *[None] * 4]
    assert torch.equal(read.regions()[1], mask) and not read.regions()[[0, 2, 3, 4, 5]].any()
    assert Manifest.read(tmp_path / "older.parquet", columns=["sample_id", "region"]).table.num_columns == 2
    assert rows([]).regions().shape == (0, 1, 0, 0)
    columns["region"][1] = b"torn"
    with pytest.raises(DataError, match="a region of a manifest"):
        Manifest.from_columns(**columns).regions()


def test_no_files_are_no_rows_of_the_same_schema(tmp_path: Path) -> None:
    assert len(Manifest.read(tmp_path)) == 0 and Manifest.read(tmp_path).table.schema.equals(SCHEMA)


@pytest.mark.parametrize("damage", ["missing", "torn", "columns"])
def test_a_bad_file_is_named(tmp_path: Path, damage: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "train.parquet"
    if damage == "torn":
        pq.write_table(rows(["train"]).table, file)
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "columns":
        pq.write_table(pa.table({"x": [1]}), file)
    with pytest.raises(DataError, match=r"train\.parquet"):
        Manifest.read(file)


def test_targets_follow_the_order_of_the_classes_and_refuse_strangers() -> None:
    manifest = rows(["train"] * 3, ["b", "a", "b"])
    assert manifest.targets(["a", "b"]).tolist() == [1, 0, 1]
    assert manifest.counts(["a", "b"]).tolist() == [1, 2]
    with pytest.raises(DataError, match="label 'b'"):
        manifest.targets(["a"])


def test_where_and_take_keep_the_order() -> None:
    manifest = rows(["train"] * 4)
    assert list(manifest.where(np.array([True, False, True, False])).column("sample_id")) == ["s0", "s2"]
    assert list(manifest.take(np.array([3, 3, 0])).column("sample_id")) == ["s3", "s3", "s0"]
