"""fit: train rows -> a generative model of one family."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.config import Params, Section, parse
from pipeline.core import work
from pipeline.core.images import masks_resized, resized, to_float
from pipeline.core.prepared import Prepared
from pipeline.errors import ConfigError
from pipeline.generators import registry
from pipeline.generators.shared.base import Surroundings
from pipeline.runtime import costs, parallel

CHECKPOINTS = ".checkpoints"


def run(params: Params, family: str, prepared: Path, reference: Path, out: Path, cost: Path) -> None:
    """Write the model of `family` into folder `out`, and what it cost to the file `cost`.

    Train rows are those of `reference`, which the stage drift chose; rows made elsewhere are those of `prepared`.

    A killed fit goes on at its last checkpoint. Raises ConfigError where the processes cannot share a batch evenly.
    """
    settings, size = registry.settings(params, family), params.generator_size
    processes = _processes(params.fit.processes, family, getattr(settings, "batch_images", 0))
    inputs = (reference / "train.parquet", reference / "dataset.json", Prepared(prepared).input_of(family))
    with work.resumable(out, params.seed, settings.model_dump(), processes, size, *inputs) as folder:
        checkpoints = folder / CHECKPOINTS
        checkpoints.mkdir(exist_ok=True)
        rows = len(
            Prepared(reference).train() if registry.family(family).traits.sources_known else Prepared(prepared).external()
        )
        with costs.noted(cost, images=rows, resumed=any(checkpoints.iterdir())):
            if processes == 1:
                _fit(family, settings, params.seed, size, prepared, reference, folder)
            else:
                given = json.dumps([family, settings.model_dump(), params.seed, size, str(prepared), str(reference)])
                parallel.launch(__name__, processes, folder, given)


def _processes(asked: int, family: str, batch: int) -> int:
    """How many processes fit the family: one where it is not trained on batches that can be shared, which is said."""
    if asked == 1 or not registry.family(family).traits.data_parallel:
        if asked > 1:
            print(f"{family}: fitted by one process, its batches cannot be shared", file=sys.stderr)
        return 1
    if batch % asked:
        raise ConfigError(
            f"fit.processes={asked} with {family}.batch_images={batch}",
            expected="as many images a step for each process",
            remedy=f"set {family}.batch_images={max(asked, batch - batch % asked)}",
        )
    return asked


def _fit(family: str, settings: Section, seed: int, size: int, prepared: Path, reference: Path, folder: Path) -> None:
    """Fit and save the model in `folder`: alone, or as one of the processes that share batches.

    Train rows are brought to `size` pixels a side; rows made elsewhere stay as they are.
    """
    data, kind = Prepared(reference), registry.family(family)
    own = kind.traits.sources_known
    rows = data.train() if own else Prepared(prepared).external()
    images, labels = rows.training_tensors(data.classes, f"the generator {family}")
    side = size if own else data.shape[1]
    model = kind(settings, shape=(data.shape[0], side, side), n_classes=len(data.classes))
    told = {"around": Surroundings(masks_resized(rows.regions(), side), data.classes)} if kind.traits.regions else {}
    model.fit(to_float(resized(images, side)), labels, seed=seed, folder=folder / CHECKPOINTS, **told)
    if parallel.rank() == 0:
        model.save(folder)


def _joined(folder: Path, given: str) -> int:
    """One of the processes that `run` launches; the exit status."""
    family, values, seed, size, prepared, reference = json.loads(given)
    settings = parse(registry.family(family).Config, values, family)
    return parallel.joined(lambda: _fit(family, settings, seed, size, Path(prepared), Path(reference), folder), folder)


if __name__ == "__main__":
    sys.exit(_joined(Path(sys.argv[1]), sys.argv[2]))
