"""Evaluate: the only stage that opens the test rows, once every choice is made."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.evaluation.near import Pair
from pipeline.evaluation.score import NEAR, evaluate
from pipeline.generators import registry


def run(params: Params, prepared: Path, runs: Path, metrics: Path, gains: Path, out: Path) -> None:
    """Write `metrics` (JSON), `gains` (CSV), and into `out` details.json, with an encoder near-duplicates across splits too."""
    data = Prepared(prepared)
    results = evaluate(registry.resolved(params), data, runs, data.test())
    if params.encoder.name != "none":
        work.write(out / NEAR, _table(Pair._fields, results.near))
    work.write_json(out / "details.json", results.details())
    work.write(gains, _table(("arm", "metric", "estimate", "low", "high"), results.gains()))
    work.write_json(metrics, results.metrics())


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
