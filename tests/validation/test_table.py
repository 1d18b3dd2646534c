"""Expectations on the table of a pool: each fails for the fault it is there for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from helpers.judged import CLASSES, Digits, manifest
from pipeline.core.manifest import Manifest
from pipeline.validation import table


@pytest.fixture(scope="module")
def pool(digits: Digits) -> Manifest:
    sources = [["train-0", "train-3"], None, []] * 10
    return manifest(digits.images[:30], [CLASSES[t] for t in digits.targets[:30]], "naive", family="naive", sources=sources)


def failing(pool: Manifest, train: Manifest, docs: Path, **more: object) -> dict[tuple[str, str | None], table.Result]:
    settings = {"family": "naive", "needed": {}, "largest_share": 1.0} | more
    results = table.validate(pool, train, CLASSES, docs=docs, **settings)  # type: ignore[arg-type]
    return {(r.expectation, r.column): r for r in results if not r.success}


def changed(pool: Manifest, column: str, value: object, row: int = 7) -> Manifest:
    values = pool.table[column].to_pylist()
    values[row] = value
    place = pool.table.column_names.index(column)
    return Manifest(pool.table.set_column(place, column, pa.array(values, pool.table.schema.field(column).type)))


def test_a_good_pool_passes_and_its_pages_are_reproducible(pool: Manifest, digits: Digits, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert failing(pool, digits.train, tmp_path / name) == {}
    pages = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert Path("index.html") in pages
    for page in pages:
        assert (tmp_path / "a" / page).read_bytes() == (tmp_path / "b" / page).read_bytes(), page


FAULTS = [
    ("label", "no such class", "column_values_to_be_in_set", "critical"),
    ("split", "test", "column_values_to_be_in_set", "critical"),
    ("origin", "real", "column_values_to_be_in_set", "critical"),
    ("generator", "another", "column_values_to_be_in_set", "critical"),
    ("sources", ["train-0", "val-3"], "column_values_to_be_in_set", "critical"),
    ("sample_id", "naive-3", "column_values_to_be_unique", "critical"),
    ("sample_id", "train-3", "column_values_to_be_in_set", "critical"),
    ("label", None, "column_values_to_not_be_null", "critical"),
    ("pixel_hash", "SAME", "column_values_to_be_unique", "warning"),
]
CHECKED = {"sources": "sources_in_train"}


@pytest.mark.parametrize(("column", "value", "expectation", "severity"), FAULTS)
def test_each_fault_is_found(
    column: str, value: object, expectation: str, severity: str, pool: Manifest, digits: Digits, tmp_path: Path
) -> None:
    wrong = changed(pool, column, pool.column("pixel_hash")[3] if value == "SAME" else value)
    found = failing(wrong, digits.train, tmp_path)
    checked = "new_id" if value == "train-3" else CHECKED.get(column, column)
    result = found[expectation, checked]
    assert result.severity == severity
    assert result.unexpected_count >= 1
    name = wrong.table["sample_id"].to_pylist()[7]
    assert value is None or name in result.examples
    assert (tmp_path / "index.html").exists()
    assert "\n" not in result.line() and severity in result.line()


def test_classes_left_short_or_swamped_are_warned_of(pool: Manifest, digits: Digits, tmp_path: Path) -> None:
    found = failing(pool, digits.train, tmp_path, needed={"3": 500}, largest_share=0.2)
    assert found["column_pair_values_a_to_be_greater_than_b", "synthetic/needed"].severity == "warning"
    assert found["column_values_to_be_between", "share"].severity == "warning"
    assert set(found["column_values_to_be_between", "share"].examples) <= set(CLASSES)


def test_an_empty_pool_is_a_warning(pool: Manifest, digits: Digits, tmp_path: Path) -> None:
    found = failing(pool.where(np.zeros(len(pool), bool)), digits.train, tmp_path)
    assert {r.severity for r in found.values()} == {"warning"}


def test_sources(pool: Manifest, digits: Digits) -> None:
    assert table.sources_in_train(pool, digits.train)[:3].tolist() == [True, None, True]
    wrong = changed(pool, "sources", ["train-1", "test-9"], 1)
    assert table.sources_in_train(wrong, digits.train)[:3].tolist() == [True, False, True]


@pytest.mark.fault(18, "names of classes in the Data Docs")
def test_class_names_stay_inert_in_the_pages(pool: Manifest, digits: Digits, tmp_path: Path) -> None:
    failing(changed(pool, "label", "<script>alert(1)</script>"), digits.train, tmp_path)
    pages = "".join(p.read_text() for p in tmp_path.rglob("*.html"))
    assert "<script>alert(1)</script>" not in pages


def test_odd_class_names_are_checked_by_their_own_name(pool: Manifest, digits: Digits, tmp_path: Path) -> None:
    odd = "a & <b> 'c'"
    rows = changed(changed(pool, "label", odd), "sample_id", "<i>7</i>")
    known = table.validate(
        rows, digits.train, [*CLASSES, odd], family="naive", needed={}, largest_share=1.0, docs=tmp_path / "known"
    )
    assert all(r.success for r in known if r.column == "label")
    assert failing(rows, digits.train, tmp_path / "unknown")["column_values_to_be_in_set", "label"].examples == ["<i>7</i>"]
