"""fit: train rows -> a generative model of one family."""

from __future__ import annotations

from pathlib import Path

from pipeline import costs, work
from pipeline.config import Params
from pipeline.generators import registry
from pipeline.images import to_float
from pipeline.prepared import Prepared


def run(params: Params, family: str, prepared: Path, reference: Path, out: Path, cost: Path) -> None:
    """Write the model of `family` into folder `out`, and what it cost to the file `cost`.

    Train rows are those of `reference`, which the stage drift chose; rows made elsewhere are those of `prepared`.

    A killed fit goes on at its last checkpoint.
    """
    data, outside = Prepared(reference), Prepared(prepared)
    settings = registry.settings(params, family)
    kind = registry.family(family)
    rows = data.train() if kind.traits.sources_known else outside.external()
    images, labels = rows.training_tensors(data.classes, f"the generator {family}")
    decided_by = (settings.model_dump(), reference / "train.parquet", reference / "dataset.json", outside.input_of(family))
    with work.resumable(out, params.seed, *decided_by) as folder:
        checkpoints = folder / ".checkpoints"
        checkpoints.mkdir(exist_ok=True)
        model = kind(settings, shape=data.shape, n_classes=len(data.classes))
        with costs.noted(cost, images=len(images), resumed=any(checkpoints.iterdir())):
            model.fit(to_float(images), labels, seed=params.seed, folder=checkpoints)
        model.save(folder)
