"""Many training runs, packed: worker processes of one thread each, one run at a time in each (runtime/engine.py).

A small network cannot use several threads, so k runs side by side finish sooner than k runs one after the other on all
threads (docs/evaluation.md has the measurement). A run is a function of (arm, seed, data), and every worker has one thread. So
results depend neither on the number of workers nor on where they are. On an accelerator the runs go one after the other in this
process, unless params.engine asks for more.

A finished run is a file, written whole or not at all, with its validation score in its card. A stage that was killed goes on
with the runs whose files are missing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline.arms import Arm, TrainingData
from pipeline.classifier import train
from pipeline.classifier.choice import Scores
from pipeline.classifier.inputs import Inputs
from pipeline.config import ClassifierInMode, Engine, Mode, Params
from pipeline.core import weights
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import derive
from pipeline.metrics.base import Metric
from pipeline.metrics.registry import named
from pipeline.runtime import engine, training


@dataclass(frozen=True)
class Run:
    """One arm with the seed of this number, and the file of its weights."""

    arm: Arm
    number: int
    file: Path

    @property
    def score(self) -> float:
        """On validation rows by the campaign's metric, from the file's card. Raises DataError where the run is not finished."""
        return float(weights.load(self.file)[1]["validation"])


def runs_of(arm: Arm, seeds: range, folder: Path, first: int = 0) -> list[Run]:
    """One run of `arm` for each seed i, in `folder`/<i>.safetensors; `first` is the number of the first of all seeds."""
    return [Run(arm, first + i, folder / f"{i}.safetensors") for i in seeds]


def scores_of(runs: Sequence[Run]) -> Scores:
    """The scores of finished runs. Raises DataError where one is not finished."""
    return Scores.of([run.score for run in runs])


@dataclass(frozen=True)
class Campaign:
    """What all runs share, and where they are made.

    `val_images`, uint8 (n, c, h, w) or features (n, 1 + v, d), and `val_targets` (n,) give scores by `metric`, no more.
    """

    data: TrainingData
    config: ClassifierInMode
    flips: str
    seed: int
    val_images: np.ndarray
    val_targets: np.ndarray
    engine: Engine
    metric: Metric
    mode: Mode = "scratch"
    prefix: str = ""  # of its arms' names, where several modes are compared

    @classmethod
    def of(
        cls,
        params: Params,
        prepared: Prepared,
        mode: Mode,
        pool: Manifest | None = None,
        accepted: np.ndarray | None = None,
    ) -> Campaign:
        """In one mode, on the train rows and on the rows of `pool`, of which `accepted` (m,) tells the accepted ones.

        Raises LeakError where a row must not be trained on, and ConfigError where the mode wants an encoder.
        """
        val, classes = prepared.val(), prepared.classes
        inputs, size = Inputs.of(params, prepared.shape, mode), params.generator_size
        lower = pool is not None and size < inputs.size and bool((pool.column("generator") != "external").any())
        low = inputs.at(size).to_learn if lower else None
        return cls(
            data=TrainingData.of(prepared.train(), classes, pool, accepted, look=inputs.to_learn, low=low),
            config=params.in_mode(mode),
            flips=params.data.flips,
            seed=params.seed,
            val_images=inputs.to_score(val),
            val_targets=val.targets(classes).numpy(),
            engine=params.engine,
            metric=named(params.evaluate.metric),
            mode=mode,
            prefix=params.arm_name(mode, ""),
        )

    def execute(self, run: Run, progress: Callable[[int], None]) -> None:
        """Train, score and write one run."""
        seed = derive(self.seed, "classifier", run.number)
        plan = run.arm.build(self.data, seed)
        checkpoints = run.file.parent / f".{run.file.stem}"
        network = train.fit(plan, self.config, seed, flips=self.flips, folder=checkpoints, progress=progress)
        probabilities = train.predict(network, torch.from_numpy(self.val_images))
        score = self.metric.score(probabilities, self.val_targets)
        train.save(
            network, run.file, self.config, self.data.images.shape[1:], self.data.n_classes,
            arm=run.arm.name, synthetic_fraction=run.arm.synthetic_fraction, labels=run.arm.labels,
            number=run.number, validation=score,
        )  # fmt: skip
        shutil.rmtree(checkpoints, ignore_errors=True)


def train_all(campaign: Campaign, runs: Sequence[Run]) -> None:
    """Execute the runs whose files are missing, where campaign.engine says. Raises what a run raised, and engine.spread."""
    todo = [run for run in runs if not run.file.exists()]
    if not todo:
        return
    bar = tqdm(
        total=len(todo) * campaign.config.steps * campaign.config.batch_images, desc=f"train {len(todo)} classifiers",
        unit=" images", unit_scale=True, mininterval=0.5 if sys.stderr.isatty() else 10.0, dynamic_ncols=True,
    )  # fmt: skip

    def count(images: int) -> None:
        bar.update(images)

    on_processor = training.device().type == "cpu"
    usual, threads = (len(os.sched_getaffinity(0)), 1) if on_processor else (1, 0)
    with bar:
        engine.spread(campaign.execute, todo, campaign.engine, usual=usual, threads=threads, count=count)
