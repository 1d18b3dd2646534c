"""`python -m benchmarks.null [DATASET]`: how often no difference at all is called a gain.

A/A: forty runs of the best real-only arm of a project that benchmarks.gain has run, under forty seeds. Two times five of them
are drawn at random, 1,000 times, and compared as `synthetic` is with the best real-only arm: the same resamples, intervals and
verdict, on validation rows. Nothing differs but seeds, so `gain` and `harm` should each be read in 2.5 % at most. The shares
are written to benchmarks/results/null.json.
"""

from __future__ import annotations

import argparse
import collections

import numpy as np
import torch

from benchmarks.command import errors_in_a_line
from benchmarks.gain import PLACE, RESULTS
from pipeline import config
from pipeline.arms import Arm, recipe_of
from pipeline.classifier import train
from pipeline.classifier.choice import RealChoice
from pipeline.classifier.packed import Campaign, runs_of, train_all
from pipeline.classifier.teaching import taught
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import numpy_rng
from pipeline.errors import InputError
from pipeline.evaluation.intervals import interval, resample
from pipeline.evaluation.verdict import verdict
from pipeline.metrics.predictions import Predictions

RUNS, PAIRS = 40, 1000


def verdicts(name: str) -> dict[str, object]:
    """Train what is missing and compare."""
    place = PLACE / name
    params, data = config.read(place / "params.yaml"), Prepared(place / "data/prepared")
    val, real, n = data.val(), place / "data/runs/real", params.arms.seeds
    choice = RealChoice.read(real)
    shared = Campaign.of(params, data, choice.mode)
    own = choice.teacher.removeprefix(shared.prefix)
    best, teacher = (
        Arm(arm, recipe_of(shared.config, arm.removeprefix(shared.prefix), own))
        for arm in (choice.best_real_arm, choice.teacher)
    )
    if best.recipe.distilled:
        shared = taught(shared, runs_of(teacher, range(n), real / teacher.name))
    # Runs of another state of the project are none of this one's.
    folder = PLACE / "null" / f"{name}-{work.key(place / 'dvc.lock')[:12]}"
    runs = runs_of(best, range(RUNS), folder)
    train_all(shared, runs)

    images = torch.from_numpy(shared.val_images)
    resamples = resample(shared.val_targets, val.column("group"), n_seeds=n, n=params.evaluate.bootstrap, seed=params.seed)
    predicted = Predictions(np.stack([train.predict(train.load(run.file), images) for run in runs]), shared.val_targets)
    metric = shared.metric
    values = metric.resample(predicted, resamples.weights)  # (R + 1, RUNS)
    drawn, r = collections.Counter[str](), numpy_rng(params.seed, "null")
    for _ in range(PAIRS):
        a, b = r.permutation(RUNS)[: 2 * n].reshape(2, n)
        gain = interval(values[:, a] - values[:, b], resamples.seeds, params.evaluate.confidence)
        drawn[verdict(gain, metric)] += 1
    return {
        "dataset": name,
        "arm": best.name,
        "runs": RUNS,
        "pairs": PAIRS,
        **{k: drawn[k] / PAIRS for k in ("gain", "no_gain", "harm")},
    }


def main() -> None:
    """Print and write the shares."""
    parser = argparse.ArgumentParser(description="How often no difference at all is called a gain.")
    parser.add_argument("dataset", nargs="?", default="digits", metavar="DATASET")
    name = parser.parse_args().dataset
    with errors_in_a_line():
        if not (PLACE / name / "metrics.json").is_file():
            raise InputError(f"{PLACE / name} was not run", remedy=f"make bench-gain DATASETS={name}")
        found = verdicts(name)
    work.write_json(RESULTS / "null.json", found)
    print(found)


if __name__ == "__main__":
    main()
