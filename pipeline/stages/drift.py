"""drift: what changed in train since the generators were fitted, and the train rows that they are to be fitted on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.datasets import drift
from pipeline.encoders.base import fixed
from pipeline.errors import DataError

ROWS = ("train.parquet", "dataset.json")  # of a prepared version, what a fit needs


def run(params: Params, prepared: Path, out: Path) -> None:
    """Write three entries into folder `out`; what an earlier version left there is what `prepared` is compared with.

    before/      the version that is compared with: train.parquet, dataset.json (classes and form of the images)
    drift.json   what changed and what follows (pipeline/datasets/drift.py)
    reference/   the version that generators are fitted on: `before` as it is where they are re-used, else the present one

    Raises DataError where a file of `prepared` or drift.json is missing or torn.
    """
    present = Prepared(prepared)
    known = _compared_with(out, present.info["fingerprint"])
    before = known or prepared
    files = [place / name for place in (before, prepared) for name in ROWS]
    with work.resumable(out, params.seed, params.drift.model_dump(), *files) as folder:
        encoder = fixed(params.drift.encoder, present.shape, params.encoder, "drift.encoder")
        found = drift.compare(Prepared(before), present, params.drift, params.seed, encoder)
        # The entries are put in place in the order of their names, and drift.json says of which version `before` is the past:
        # whenever this process is killed, `_compared_with` finds the same version again.
        _lay(folder / "before", before)
        work.write_json(folder / "drift.json", found)
        _lay(folder / "reference", prepared if found["decision"] == "retrain" else before)


def _compared_with(out: Path, now: str) -> Path | None:
    """The folder that holds the version which the version `now` is to be compared with; None where there is none.

    It is what generators were fitted on. Once `now` itself has been decided on, that stands in `before`.
    """
    try:
        decided = json.loads((out / "drift.json").read_text(encoding="utf-8"))["now"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{out}/drift.json: {error!r}",
            expected="what the stage drift wrote",
            remedy=f"run `dvc checkout {out}`, or remove {out}: generators are then fitted anew",
        ) from error
    known = out / ("before" if decided == now else "reference")
    return known if all((known / name).is_file() for name in ROWS) else None


def _lay(folder: Path, version: Path) -> None:
    """A copy of what a fit needs of `version`, with nothing in it that changes while train does not."""
    if folder.exists():  # of a process that was killed here: half a file of it would be taken for a part of the version
        shutil.rmtree(folder)
    folder.mkdir()
    shutil.copyfile(version / "train.parquet", folder / "train.parquet")
    info = Prepared(version).info
    work.write_json(folder / "dataset.json", {name: info[name] for name in ("classes", "image_size", "channels")})
