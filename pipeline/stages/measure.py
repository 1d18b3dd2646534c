"""Measure: what one family can do on real validation rows, for choosing among families."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.evaluation import measures
from pipeline.generators import registry


def run(params: Params, family: str, prepared: Path, model: Path, pool: Path, checked: Path, out: Path) -> None:
    """Write measures.json into folder `out`."""
    data, fitted = Prepared(prepared), registry.family(family).load(model)
    settings = (params.seed, params.data.flips)
    read = (params.encoder, params.classifier, params.frozen, params.finetune, params.measure, params.evaluate)
    sections = [section.model_dump() for section in read]
    rows = [prepared / name for name in ("train.parquet", "val.parquet", "dataset.json")]
    with work.resumable(out, settings, sections, *rows, model, pool, checked / "summary.json") as folder:
        runs = folder / ".runs"
        runs.mkdir(exist_ok=True)
        found = {
            "family": family,
            "metric": params.evaluate.metric,
            "density": fitted.traits.density,
            "likelihood": fitted.traits.likelihood,
            "cas": measures.cas(params, data, Manifest.read(pool), runs),
            **measures.likelihoods(params, data, fitted),
            **measures.closeness(checked / "summary.json"),
            "parameters": measures.parameters(model),
        }
        work.write_json(folder / "measures.json", found)
