"""A pool of labelled synthetic images, shard by shard.

Every class gets ceil(surplus * fill_to) images, since some will be rejected: enough to fill any class to the threshold, and,
the real images left away, for the classification accuracy score of all classes. Each image has its own seed, derived from its
family, class and number: shards, batches, workers and retries cannot change it. A shard appears whole or not at all, and a
killed run goes on at the first missing one.

`sources` of a row are the train images of its class that its model was fitted on.
"""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from pipeline import images, work
from pipeline.errors import Diverged
from pipeline.generators.base import GenerativeModel
from pipeline.manifest import Manifest
from pipeline.seeds import derive


@dataclass(frozen=True)
class Plan:
    """What to sample: row i is image `ids[i]` of class number `labels[i]` from `seeds[i]`, come from `sources[i]`."""

    ids: list[str]
    labels: list[int]
    seeds: list[int]
    sources: list[list[str] | None]

    def __len__(self) -> int:
        return len(self.ids)


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


def write_pool(model: GenerativeModel, family: str, plan: Plan, classes: list[str], folder: Path, *, shard_images: int) -> None:
    """Write part-00000.parquet … into `folder`; shards that are already there are kept."""
    bar = tqdm(
        total=len(plan), desc=f"sample {family}", unit=" images", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip
    with bar:
        for number, start in enumerate(range(0, len(plan), shard_images)):
            stop = min(start + shard_images, len(plan))
            file = folder / f"part-{number:05d}.parquet"
            if not file.exists():
                _write_shard(model, family, plan, classes, file, start, stop)
            bar.update(stop - start)
    if not len(plan):
        _write_shard(model, family, plan, classes, folder / "part-00000.parquet", 0, 0)


def _write_shard(
    model: GenerativeModel, family: str, plan: Plan, classes: list[str], file: Path, start: int, stop: int
) -> None:
    rows, n = slice(start, stop), stop - start
    labels = torch.tensor(plan.labels[rows], dtype=torch.int64)
    sampled = model.sample(labels, plan.seeds[rows]) if n else torch.empty(0, 1, 1, 1)
    if not bool(sampled.isfinite().all()):  # a PNG could not show it
        raise Diverged(f"{family} sampled values that are not finite", remedy=f"lower lr in section {family} of params.yaml")
    made = images.to_uint8(sampled)
    manifest = Manifest.from_columns(
        sample_id=plan.ids[rows], image=images.encode_all(made), label=np.array(classes)[labels.numpy()],
        split=["train"] * n, group=plan.ids[rows], origin=["synthetic"] * n, generator=[family] * n, seed=plan.seeds[rows],
        sources=plan.sources[rows], pixel_hash=[images.pixel_hash(i) for i in made],
    )  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(manifest.table, buffer, compression="zstd")
    work.write(file, buffer.getvalue())
