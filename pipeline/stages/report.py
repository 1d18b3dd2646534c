"""Stage report: what everybody measured -> report/index.html, one file that needs no network."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.report import page


def run(
    params: Params,
    prepared: Path,
    drift: Path,
    pools: Path,
    checked: Path,
    measures: Path,
    evaluation: Path,
    metrics: Path,
    out: Path,
) -> None:
    """Write `out`/index.html. gains.csv is read beside `metrics`. Raises DataError where a file is missing or torn.

    `params` decides nothing here: the settings shown are those under which evaluate ran, as it wrote them down.
    """
    sources = page.Sources(prepared, drift, pools, checked, measures, evaluation, metrics)
    html = page.render(sources, out)
    work.write(out / "index.html", html)
    print(f"report: {out / 'index.html'} ({len(html.encode()) / 1e6:.1f} MB)")
