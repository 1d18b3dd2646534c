"""A pool of labelled synthetic images, shard by shard.

Every class gets ceil(surplus * fill_to) images, since some will be rejected. That is enough to fill any class to the threshold,
and for the classification accuracy score, which leaves the real images away. Each image has its own seed, derived from its
family, class and number: shards, workers and retries cannot change it. pipeline/runtime/engine.py has the shards made. A shard
appears whole or not at all, and a killed run goes on with the missing ones.

`sources` of a row are the train images that it was made of, where the model knows them, else those of its class that the model
was fitted on.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from pipeline.config import Engine
from pipeline.core import images, work
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import derive
from pipeline.errors import Diverged
from pipeline.generators.shared.base import GenerativeModel, HasSources
from pipeline.runtime import engine

NO_ROWS = np.empty(0, object)


@dataclass(frozen=True)
class Plan:
    """What to sample: row i is image `ids[i]` of class number `labels[i]` from `seeds[i]`, and comes from `sources[i]`."""

    ids: list[str]
    labels: list[int]
    seeds: list[int]
    sources: list[list[str] | None]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> Plan:
        """Rows from `start` to before `stop`."""
        rows = slice(start, stop)
        return Plan(self.ids[rows], self.labels[rows], self.seeds[rows], self.sources[rows])


def fill(family: str, train: Manifest, classes: list[str], *, fill_to: int, surplus: float, seed: int) -> Plan:
    """The rows for `fill_to` images of each class, with `surplus`."""
    plan = Plan([], [], [], [])
    ids, labels = train.column("sample_id"), train.column("label")
    for c, name in enumerate(classes):
        own = list(ids[labels == name])
        for i in range(math.ceil(surplus * fill_to)):
            plan.ids.append(f"{family}-{c:03d}-{i:06d}")
            plan.labels.append(c)
            plan.seeds.append(derive(seed, "sample", family, c, i))
            plan.sources.append(own)
    return plan


def all_of(external: Manifest, classes: list[str]) -> Plan:
    """Each external row once, in order: the seed is its number among its label's rows."""
    labels = external.targets(classes).tolist()
    seen = [0] * len(classes)
    seeds = []
    for label in labels:
        seeds.append(seen[label])
        seen[label] += 1
    return Plan(list(external.column("sample_id")), labels, seeds, external.table["sources"].to_pylist())


@dataclass(frozen=True)
class Shard:
    """A file of a pool and the rows in it."""

    file: Path
    plan: Plan


@dataclass(frozen=True)
class Sampler:
    """What writes shards of the pool of `family`, images of `size` pixels a side, where one is given.

    The model is loaded at the first image, by the process that makes it. `rows` are the sample_ids of what it was fitted on.
    """

    load: Callable[[], GenerativeModel]
    family: str
    classes: list[str]
    size: int | None
    rows: np.ndarray

    @cached_property
    def model(self) -> GenerativeModel:
        return self.load()

    def write(self, shard: Shard, count: Callable[[int], None]) -> None:
        """Write one shard. Raises Diverged for values that are not finite."""
        plan, n = shard.plan, len(shard.plan)
        labels = torch.tensor(plan.labels, dtype=torch.int64)
        sources: list[list[str] | None] = plan.sources
        if isinstance(self.model, HasSources):
            sampled, made_of = self.model.sample_with_sources(labels, plan.seeds)
            sources = [list(dict.fromkeys(self.rows[rows])) for rows in made_of.numpy()]
        else:
            sampled = self.model.sample(labels, plan.seeds) if n else torch.empty(0, 1, 1, 1)
        if not bool(sampled.isfinite().all()):  # a PNG could not show it
            raise Diverged(
                f"{self.family} sampled values that are not finite", remedy=f"lower lr in section {self.family} of params.yaml"
            )
        made = images.to_uint8(sampled)
        made = images.resized(made, self.size or made.shape[-1])
        manifest = Manifest.from_columns(
            sample_id=plan.ids, image=images.encode_all(made), label=np.array(self.classes)[labels.numpy()],
            split=["train"] * n, group=plan.ids, origin=["synthetic"] * n, generator=[self.family] * n, seed=plan.seeds,
            sources=sources, pixel_hash=[images.pixel_hash(i) for i in made],
        )  # fmt: skip
        buffer = io.BytesIO()
        pq.write_table(manifest.table, buffer, compression="zstd")
        work.write(shard.file, buffer.getvalue())
        count(n)


def write_pool(
    load: Callable[[], GenerativeModel], family: str, plan: Plan, classes: list[str], folder: Path, *, shard_images: int,
    where: Engine, size: int | None = None, rows: np.ndarray = NO_ROWS,
) -> None:  # fmt: skip
    """Write part-00000.parquet … into `folder`; shards that are already there are kept. `load` gives the model of `family`.

    Images have `size` pixels a side; as the model makes them where it is None. `rows` are the sample_ids of the train rows that
    it was fitted on, in their order, for a model that knows of each image which ones it was made of.
    """
    starts = range(0, max(1, len(plan)), shard_images)
    shards = [Shard(folder / f"part-{k:05d}.parquet", plan.part(i, i + shard_images)) for k, i in enumerate(starts)]
    todo = [shard for shard in shards if not shard.file.exists()]
    bar = tqdm(
        total=len(plan), initial=len(plan) - sum(len(shard.plan) for shard in todo), desc=f"sample {family}", unit=" images",
        dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip

    def count(made: int) -> None:
        bar.update(made)

    with bar:
        engine.spread(Sampler(load, family, classes, size, rows).write, todo, where, usual=1, threads=0, count=count)
