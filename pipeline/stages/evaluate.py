"""Evaluate: the only stage that opens the test rows, once every choice is made."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.evaluation.score import evaluate
from pipeline.generators import registry


def run(params: Params, prepared: Path, runs: Path, metrics: Path, gains: Path, out: Path) -> None:
    """Write `metrics` (JSON), `gains` (CSV) and details.json into `out`."""
    data = Prepared(prepared)
    results = evaluate(registry.resolved(params), data, runs, data.test())
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["arm", "metric", "estimate", "low", "high"])
    rows.writerows(results.gains())
    work.write_json(out / "details.json", results.details())
    work.write(gains, table.getvalue())
    work.write_json(metrics, results.metrics())
