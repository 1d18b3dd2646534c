"""Data sets as `tailforge init` lays them, prepared without the rest of a run: for benchmarks that look at real rows alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gain import DATASETS, PLACE, unpacked
from pipeline import config
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.errors import InputError
from pipeline.stages import prepare
from tailforge import project, settings


@contextmanager
def prepared(name: str, changes: Mapping[str, Any]) -> Iterator[tuple[config.Params, Prepared]]:
    """Within its project, as working folder: the settings of a data set of benchmarks.gain with `changes`, and its rows.

    Raises InputError where TAILFORGE_DATASETS names no folder with it.
    """
    place, folder, ids = (PLACE / "prepared" / name).absolute(), DATASETS[name].folder, DATASETS[name].ids
    source = Path(os.environ.get("TAILFORGE_DATASETS", "")) / folder
    if folder and not ("TAILFORGE_DATASETS" in os.environ and source.is_dir()):
        raise InputError(f"TAILFORGE_DATASETS holds no folder {folder}", expected="the folder of data sets", remedy="set it")
    if not place.exists():
        project.init(place, unpacked(source)) if folder else project.lay(place, {}, "the digits that come with scikit-learn")
    listed = {"scarcity.kind": "ids", "scarcity.ids": f"data/lists/{ids}"} if ids else {}
    if ids:
        work.write(place / "data/lists" / ids, (source / ids).read_bytes())
    with chdir(place):
        text = Path("params.yaml").read_text(encoding="utf-8")
        params = config.resolved(config.values(settings.apply(text, {**listed, **changes})))
        rows = Path(f"prepared-{params.data.image_size}")
        if not rows.exists():
            prepare.run(params, rows)
        yield params, Prepared(rows)
