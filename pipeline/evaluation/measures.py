"""What one family can do on real *validation* rows: a line of the bake-off. Families are chosen by it, so no test row is seen.

    cas             classification accuracy score: the primary metric on real rows of a classifier that was trained on the
                    pool alone, before any check (Ravuri & Vinyals, 2019)
    bayes           the primary metric of p(y | x) by Bayes' rule with even priors (generators/bayes.py)
    bits_per_dim    of dequantised real rows under their own class (shared/density.py); of a bound where there is no more
    closeness       what the stage `validate` measured of the pool before any check (pipeline/validation/fidelity.py)
    accepted        share of the pool that passed all checks
    parameters      numbers that the model stores

Intervals resample groups of validation rows, and classifiers' seeds where there are several. They leave out what rows share:
that a family was fitted once, and the error of a solver or of noise behind a likelihood.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arms import Arm, recipes
from pipeline.classifier.packed import Campaign, Run, train_all
from pipeline.config import Params
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import derive, numpy_rng
from pipeline.errors import DataError
from pipeline.evaluation.intervals import Resamples, interval, resample
from pipeline.evaluation.score import Asked
from pipeline.generators import bayes
from pipeline.generators.shared import density
from pipeline.generators.shared.base import GenerativeModel
from pipeline.metrics.predictions import Predictions
from pipeline.metrics.registry import named

RECIPE = "augment"  # classes of a pool are even, and so need no other remedy


def cas(params: Params, data: Prepared, pool: Manifest, folder: Path) -> dict[str, float] | None:
    """Classification accuracy score with its interval, None for an empty pool. `folder` keeps finished runs."""
    if len(pool) == 0:
        return None
    val, seeds = data.val(), params.measure.seeds
    campaign = replace(Campaign.of(params, data, params.modes[0], pool), seed=derive(params.seed, "cas"))
    arm = Arm("cas", recipes(campaign.config)[RECIPE], "unfiltered", keeps_real=False)
    train_all(campaign, [Run(arm, i, folder / f"{i}.safetensors") for i in range(seeds)])
    asked = Asked(params, data.shape, val, val.targets(data.classes).numpy())
    return _measured(asked.of(folder, seeds), val.column("group"), params)


def likelihoods(params: Params, data: Prepared, model: GenerativeModel) -> dict[str, dict[str, float] | None]:
    """`bayes` and `bits_per_dim` with intervals, each None where the family has no such thing."""
    n_classes = len(data.classes)
    rows = _some(data.val(), data.classes, params.measure.rows, params.seed)
    if not bayes.has_posterior(model) or len(rows) == 0:
        return {"bayes": None, "bits_per_dim": None}
    targets, groups = rows.targets(data.classes).numpy(), rows.column("group")
    scores = bayes.log_likelihoods(model, rows.images(), n_classes, seed=params.seed)
    found: dict[str, dict[str, float] | None] = {"bits_per_dim": None}
    found["bayes"] = _measured(Predictions(scores.softmax(1).numpy()[None], targets), groups, params)
    if model.traits.likelihood != "none":
        bits = density.bits_per_dim(scores[np.arange(len(rows)), targets], int(np.prod(model.shape))).numpy()
        weights = _resamples(targets, groups, 1, params).weights.astype(np.float64)
        found["bits_per_dim"] = interval(
            (bits @ weights / weights.sum(0))[:, None], np.ones((weights.shape[1], 1)), params.evaluate.confidence
        ).json()
    return found


def closeness(summary: Path) -> dict[str, Any]:
    """From summary.json of `validate`: its fidelity of the whole pool, and the share that was accepted."""
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{summary}: {error}", remedy="run the stage validate") from error
    prefix = "unfiltered_"
    measured = {name.removeprefix(prefix): value for name, value in found["fidelity"].items() if name.startswith(prefix)}
    return {"closeness": measured, "accepted": sum(found["accepted"].values()) / max(1, found["n"])}


def parameters(model: Path) -> int:
    """Numbers in the tensors of the model's files."""
    from safetensors import safe_open

    total = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            total += sum(int(np.prod(opened.get_slice(name).get_shape())) for name in opened.keys())  # noqa: SIM118
    return total


def _measured(predicted: Predictions, groups: np.ndarray, params: Params) -> dict[str, float]:
    resamples = _resamples(predicted.targets, groups, len(predicted.probabilities), params)
    values = named(params.evaluate.metric).resample(predicted, resamples.weights)
    found = interval(values, resamples.seeds, params.evaluate.confidence)
    return found.within(0.0, 1.0).json()


def _resamples(targets: np.ndarray, groups: np.ndarray, n_seeds: int, params: Params) -> Resamples:
    return resample(targets, groups, n_seeds=n_seeds, n=params.evaluate.bootstrap, seed=derive(params.seed, "measure"))


def _some(rows: Manifest, classes: list[str], n: int, seed: int) -> Manifest:
    """At most `n` rows in their order, of each class as many as of the others where it has them."""
    targets = rows.targets(classes).numpy()
    each = -(-n // len(classes))
    chosen = [
        numpy_rng(seed, "measure", c).permutation(np.flatnonzero(targets == c))[:each] for c in range(len(classes)) if each
    ]
    every = np.concatenate([*chosen, np.zeros(0, np.int64)])
    return rows.take(np.sort(numpy_rng(seed, "measure").permutation(every)[:n]))
