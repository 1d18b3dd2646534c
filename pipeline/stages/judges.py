"""Fit the judges on the real train rows, once for all families."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.encoders.judges import Judges


def run(params: Params, prepared: Path, out: Path) -> None:
    """Write the files of pipeline.encoders.judges into `out`."""
    data = Prepared(prepared)
    settings = params.judges
    lower = params.generator_size if params.generator_size < data.shape[1] else None
    sections = [section.model_dump() for section in (settings, params.encoder)]
    decided_by = (params.seed, params.data.flips, sections, lower, data.classes, prepared / "train.parquet")
    with work.resumable(out, *decided_by) as folder:
        Judges.fit(
            data.train(), data.classes, settings=settings, encoder=params.encoder, resolution=lower, flips=params.data.flips,
            seed=params.seed, folder=folder,
        )  # fmt: skip
