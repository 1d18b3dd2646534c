"""Check the pool of one family: expectations on its table, checks on its pixels, fidelity and diversity."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.encoders.judges import Judges
from pipeline.errors import TailforgeError
from pipeline.generators import bayes, registry
from pipeline.validation import gate


def run(params: Params, family: str, prepared: Path, judges: Path, model: Path, pool: Path, out: Path, docs: Path) -> None:
    """Write checks.parquet, images.parquet and summary.json to `out`, and Data Docs to `docs`.

    With validate.bayes the posterior p(y | x) of `model`, where its family has one, counts as much as a judge.

    Raises TailforgeError, when both stand, where a critical expectation fails.
    """
    data = Prepared(prepared)
    settings = (family, params.seed, params.sample.fill_to, params.validate_.model_dump(), data.classes)
    files = (prepared / "train.parquet", prepared / "val.parquet", judges, pool, *([model] if params.validate_.bayes else []))
    kind = registry.family(family)
    posterior = bayes.classifier(kind.load(model), len(data.classes), params.seed) if params.validate_.bayes else None
    with work.resumable(out, *settings, *files) as folder, work.resumable(docs, *settings, *files) as pages:
        outcome = gate.check_pool(
            pool, data.train(), data.val(), Judges.load(judges), data.classes,
            family=family, params=params, out=folder, docs=pages, posterior=posterior,
        )  # fmt: skip
    for line in outcome.warnings + outcome.failures:
        print(f"{family}: {line}", file=sys.stderr)
    if outcome.failures:
        raise TailforgeError(
            f"{family}: {len(outcome.failures)} critical expectation(s) failed on {pool}",
            expected="a pool of synthetic train rows with known labels and sources in train",
            remedy=f"mend what made the pool; {docs}/index.html lists the rows",
        )
