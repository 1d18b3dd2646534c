"""The pool as an ImageFolder: accepted rows, safe names, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core import images
from pipeline.core.manifest import Manifest
from pipeline.datasets import export
from pipeline.errors import DataError, InputError

LABELS = ["cat", "cat", "../up", "a/b", "a_b"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool of five images in two shards, the second image rejected."""
    n = len(LABELS)
    pixels = np.arange(n * 16, dtype=np.uint8).reshape(n, 1, 4, 4)
    rows = Manifest.from_columns(
        sample_id=[f"x-{i}" for i in range(n)], image=[images.encode_png(p) for p in pixels], label=LABELS, split=["train"] * n,
        group=["g"] * n, origin=["synthetic"] * n, generator=["x"] * n, seed=range(n), sources=[[]] * n, pixel_hash=["h"] * n,
    )  # fmt: skip
    folder = tmp_path / "data/pools/x"
    folder.mkdir(parents=True)
    pq.write_table(rows.table.slice(0, 3), folder / "part-00000.parquet")
    pq.write_table(rows.table.slice(3), folder / "part-00001.parquet")
    checked = tmp_path / "data/checked/x"
    checked.mkdir(parents=True)
    accepted = pa.table({"sample_id": [f"x-{i}" for i in range(n)], "accepted": [True, False, True, True, True]})
    pq.write_table(accepted, checked / "images.parquet")
    return folder


def files(out: Path) -> list[str]:
    return sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())


@pytest.mark.fault(20, "names of classes in `tailforge export`")
def test_accepted_images_in_class_folders(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = export.export(pool, tmp_path / "data/checked/x", out)
    assert files(out) == ["_._up/x-2.png", "a_b-2/x-3.png", "a_b/x-4.png", "cat/x-0.png"]
    assert counts == {"_._up": 1, "a_b-2": 1, "a_b": 1, "cat": 1}
    assert images.decode_png((out / "cat/x-0.png").read_bytes()).tolist() == np.arange(16).reshape(1, 4, 4).tolist()


def test_all_images_need_no_checks(pool: Path, tmp_path: Path) -> None:
    assert sum(export.export(pool, tmp_path / "nowhere", tmp_path / "out", everything=True).values()) == len(LABELS)


def test_a_class_whose_images_were_all_rejected_has_an_empty_folder(pool: Path, tmp_path: Path) -> None:
    checked = tmp_path / "data/checked/x"
    pq.write_table(pa.table({"sample_id": ["x-0"], "accepted": [True]}), checked / "images.parquet")
    assert export.export(pool, checked, tmp_path / "out") == {"_._up": 0, "a_b-2": 0, "a_b": 0, "cat": 1}


def test_bad_input_leaves_nothing(pool: Path, tmp_path: Path) -> None:
    out, checked = tmp_path / "out", tmp_path / "data/checked/x"
    with pytest.raises(DataError, match="holds no pool"):
        export.export(tmp_path, checked, out)
    with pytest.raises(DataError, match=r"images\.parquet"):
        export.export(pool, tmp_path / "nowhere", out)
    (pool / "part-00001.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="part-00001"):
        export.export(pool, checked, out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        export.export(pool, checked, out)
    assert files(out) == ["mine"]
