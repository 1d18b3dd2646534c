"""Pools: how many, from which seeds, and the same whatever happened on the way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.contracts_settings import CLASSES, SETTINGS, SHAPE, digits
from helpers.toy import ROOT
from pipeline import config
from pipeline.core import images
from pipeline.core.images import to_uint8
from pipeline.core.manifest import Manifest
from pipeline.errors import Diverged
from pipeline.generators import sampling
from pipeline.generators.external import External
from pipeline.generators.naive import Naive, NaiveConfig

NAMES = ["zero", "one", "two"]
write_pool = partial(sampling.write_pool, where=config.read(ROOT / "params.yaml").engine)


@pytest.fixture(scope="module")
def model() -> Naive:
    return Naive(NaiveConfig(**SETTINGS["naive"]), shape=SHAPE, n_classes=CLASSES).fit(*digits(), seed=0)


@pytest.fixture(scope="module")
def train() -> Manifest:
    pixels, targets = digits()
    keep = torch.cat([(targets == c).nonzero().squeeze(1)[:n] for c, n in enumerate((20, 9, 3))])
    n, pixels = len(keep), to_uint8(pixels[keep])
    ids = [f"real-{i}" for i in range(n)]
    return Manifest.from_columns(
        sample_id=ids, image=images.encode_all(pixels), label=np.array(NAMES)[targets[keep].numpy()], split=["train"] * n,
        group=ids, origin=["real"] * n, generator=[None] * n, seed=[None] * n, sources=[[]] * n,
        pixel_hash=[images.pixel_hash(p) for p in pixels],
    )  # fmt: skip


def plan_for(train: Manifest) -> sampling.Plan:
    return sampling.fill("naive", train, NAMES, fill_to=7, surplus=1.5, seed=4)


def test_each_class_gets_the_threshold_with_surplus(train: Manifest) -> None:
    plan = plan_for(train)
    assert [plan.labels.count(c) for c in range(3)] == [11, 11, 11]  # ceil(1.5 * 7)
    assert len(set(plan.ids)) == len(plan) == len(set(plan.seeds))


def test_sources_are_the_train_rows_of_the_class(train: Manifest) -> None:
    plan = plan_for(train)
    of_two = set(train.where(train.column("label") == "two").column("sample_id"))
    assert all(set(s or []) == of_two for s, c in zip(plan.sources, plan.labels, strict=True) if c == 2)


def pool(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.glob("*.parquet")))


class Killed(Exception):
    pass


@pytest.mark.fault(1, "sampling, killed in the middle of a shard")
def test_a_killed_pool_goes_on_at_the_missing_shard_to_the_same_bytes(
    model: Naive, train: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, undisturbed, killed = plan_for(train), tmp_path / "a", tmp_path / "b"
    write_pool(lambda: model, "naive", plan, NAMES, undisturbed, shard_images=10)
    asked: list[int] = []
    sample = Naive.sample

    def dies_at_the_third(self: Naive, labels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        asked.append(len(labels))
        if len(asked) == 3:
            raise Killed
        return sample(self, labels, seeds)

    monkeypatch.setattr(Naive, "sample", dies_at_the_third)
    with pytest.raises(Killed):
        write_pool(lambda: model, "naive", plan, NAMES, killed, shard_images=10)
    write_pool(lambda: model, "naive", plan, NAMES, killed, shard_images=10)
    assert asked == [10, 10, 10, 10, 3]  # two written, one died, the two that were missing
    assert pool(undisturbed) == pool(killed)


def test_shards_change_nothing_but_the_files(model: Naive, train: Manifest, tmp_path: Path) -> None:
    plan = plan_for(train)
    for size in (7, 100):
        write_pool(lambda: model, "naive", plan, NAMES, tmp_path / str(size), shard_images=size)
    assert Manifest.read(tmp_path / "7").table.equals(Manifest.read(tmp_path / "100").table)


def test_rows_say_what_they_are(model: Naive, train: Manifest, tmp_path: Path) -> None:
    write_pool(lambda: model, "naive", plan_for(train), NAMES, tmp_path, shard_images=100)
    made = Manifest.read(tmp_path)
    assert set(made.column("origin")) == {"synthetic"} and set(made.column("split")) == {"train"}
    assert set(made.column("generator")) == {"naive"}
    assert made.column("pixel_hash")[5] == images.pixel_hash(made.images()[5])


def test_nothing_to_fill_is_an_empty_pool(model: Naive, train: Manifest, tmp_path: Path) -> None:
    plan = sampling.fill("naive", train, NAMES, fill_to=0, surplus=2.0, seed=0)
    write_pool(lambda: model, "naive", plan, NAMES, tmp_path, shard_images=10)
    assert len(Manifest.read(tmp_path)) == 0 and len(list(tmp_path.iterdir())) == 1


def test_values_that_are_not_finite_never_become_an_image(
    model: Naive, train: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Naive, "sample", lambda self, labels, seeds: torch.full((len(labels), *SHAPE), float("nan")))
    with pytest.raises(Diverged, match="not finite"):
        write_pool(lambda: model, "naive", plan_for(train), NAMES, tmp_path, shard_images=10)
    assert not list(tmp_path.iterdir())


def test_external_images_arrive_once_each_and_unchanged(train: Manifest, tmp_path: Path) -> None:
    kind = External(External.Config(), shape=SHAPE, n_classes=CLASSES)
    kind.fit(images.to_float(train.images()), train.targets(NAMES), seed=0)
    write_pool(lambda: kind, "external", sampling.all_of(train, NAMES), NAMES, tmp_path, shard_images=9)
    made = Manifest.read(tmp_path)
    assert list(made.column("pixel_hash")) == list(train.column("pixel_hash"))
    assert list(made.column("label")) == list(train.column("label"))
