"""sample: a generative model -> a pool of labelled synthetic images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.generators import registry, sampling
from pipeline.runtime import costs


def run(params: Params, family: str, prepared: Path, reference: Path, model: Path, out: Path, cost: Path) -> None:
    """Write the pool of `family` into folder `out`, and what it cost to the file `cost`.

    Sources are the train rows of `reference`, on which the model was fitted; rows made elsewhere are those of `prepared`.

    A killed run goes on with the missing shards.
    """
    data, settings = Prepared(reference), params.sample
    kind = registry.family(family)
    if kind.traits.sources_known:
        plan = sampling.fill(
            family, data.train(), data.classes, fill_to=settings.fill_to, surplus=settings.surplus, seed=params.seed
        )
    else:
        plan = sampling.all_of(Prepared(prepared).external(), data.classes)
    decided_by = (params.seed, settings.model_dump(), model, reference / "train.parquet", reference / "dataset.json")
    with work.resumable(out, *decided_by) as folder, costs.noted(cost, images=len(plan), resumed=any(folder.iterdir())):
        sampling.write_pool(
            partial(kind.load, model), family, plan, data.classes, folder,
            size=data.shape[1], shard_images=settings.shard_images, where=params.engine, rows=data.train().column("sample_id"),
        )  # fmt: skip
