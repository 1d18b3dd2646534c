"""The bake-off's table: rows of several data sets in one file, bounds marked, failures told."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.core import work
from tailforge import scoreboard


def place(tmp_path: Path, family: str, cas: float, **changes: object) -> Path:
    interval = {"estimate": cas, "low": cas - 0.02, "high": cas + 0.02}
    found = {
        "family": family, "metric": "balanced_accuracy",
        "density": "explicit", "likelihood": "exact", "cas": interval, "bayes": interval,
        "bits_per_dim": {"estimate": 4.321, "low": 4.3, "high": 4.4}, "closeness": {"kid": {"estimate": 0.01234}},
        "accepted": 0.75, "parameters": 123456,
    }  # fmt: skip
    cost = {
        "seconds": 12.3, "images": 4567, "resumed": False, "peak_memory_mb": 789, "machine": "a machine, 2 cores",
        "date": "2026-01-02", "versions": {"torch": "2.13", "python": "3.11"},
    }  # fmt: skip
    for verb in ("fit", "sample"):
        work.write_json(tmp_path / f"data/costs/{verb}/{family}.json", cost)
    work.write_json(tmp_path / "data/measures" / family / "measures.json", found | changes)
    return tmp_path


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_row_holds_estimates_machine_date_and_versions(tmp_path: Path) -> None:
    row = scoreboard.row("digits", "naive", place(tmp_path, "naive", 0.9), None)
    assert list(row) == list(scoreboard.COLUMNS)
    assert row["cas"] == "0.9" and row["cas_low"] == "0.88" and row["kid"] == "0.01234" and row["mmd"] == ""
    assert (
        row["machine"] == "a machine, 2 cores" and row["date"] == "2026-01-02" and row["versions"] == "python 3.11 torch 2.13"
    )


def test_rows_of_other_data_sets_and_families_stay(tmp_path: Path) -> None:
    out = tmp_path / "docs"
    first = [scoreboard.row("digits", f, place(tmp_path, f, c), None) for f, c in (("naive", 0.9), ("vae", 0.8), ("gan", 0.95))]
    scoreboard.write(first, out)
    scoreboard.write([scoreboard.row("mnist", "vae", place(tmp_path, "vae", 0.7, likelihood="bound"), None)], out)
    scoreboard.write([scoreboard.row("digits", "gan", place(tmp_path, "gan", 0.85), None)], out)
    found = [(r["dataset"], r["family"], r["cas"]) for r in rows(out / "bakeoff.csv")]
    assert found == [("digits", "naive", "0.9"), ("digits", "gan", "0.85"), ("digits", "vae", "0.8"), ("mnist", "vae", "0.7")]
    page = (out / "bakeoff.md").read_text(encoding="utf-8")
    assert page.index("## digits") < page.index("## mnist")
    assert "4.32*" in page.split("## mnist")[1] and "4.32*" not in page.split("## mnist")[0]
    assert "Worse than the control `naive` in CAS: gan, vae." in page
    assert "a machine, 2 cores, 2026-01-02, python 3.11 torch 2.13" in page


def test_a_failed_family_is_a_row_that_says_why(tmp_path: Path) -> None:
    failed = scoreboard.row("digits", "gan", tmp_path, "data.image_size=9; expected 8")
    scoreboard.write([scoreboard.row("digits", "naive", place(tmp_path, "naive", 0.9), None), failed], tmp_path)
    assert "`gan` could not be measured: data.image_size=9; expected 8" in (tmp_path / "bakeoff.md").read_text()
    assert rows(tmp_path / "bakeoff.csv")[1]["failed"] == "data.image_size=9; expected 8"
    assert "gan failed: data.image_size=9" in scoreboard.table([failed])
