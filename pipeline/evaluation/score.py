"""From trained runs and test rows to numbers: per arm the metrics with intervals, the gains and the verdict.

The baseline of `synthetic` is the arm that sees real images alone with the highest validation score, `replay` included: the
stronger the baseline, the more a gain says. Of several generators the primary one is that whose `synthetic` is best on
validation; those with pretrained weights stand apart, since they may have seen the test images, and are primary only where
there is no other. Nothing is chosen by test rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pipeline.arms import recipes
from pipeline.classifier import train as classifier
from pipeline.classifier.choice import CurvePoint, PoolChoice, RealChoice
from pipeline.config import ENSEMBLE, Params
from pipeline.core.manifest import Manifest
from pipeline.evaluation import equivalent, reference
from pipeline.evaluation.intervals import Interval, Resamples, interval, resample, resampled
from pipeline.evaluation.metrics import Predictions
from pipeline.evaluation.verdict import strata, verdict
from pipeline.generators import registry

PER_CLASS = ("recall", "auroc", "average_precision")
MIN_SEEDS = 5
MIN_GROUPS = 10
PRETRAINED = "pretrained: it may have seen the test images, so its gain stands apart from the others"


@dataclass(frozen=True)
class Scored:
    """One arm: `metrics` float64 (R + 1, S) by name, `per_class` (R + 1, S, k) by name."""

    metrics: Mapping[str, np.ndarray]
    per_class: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Results:
    """What the stage writes: metrics.json, the rows of gains.csv, details.json."""

    metrics: dict[str, Any]
    gains: list[tuple[str, str, Interval]]
    details: dict[str, Any]


@dataclass(frozen=True)
class Choices:
    """What validation chose: the primary family, and each family's baseline of `synthetic`."""

    real: RealChoice
    families: Mapping[str, PoolChoice]
    primary: str
    baselines: Mapping[str, str]

    @classmethod
    def read(cls, runs: Path, families: Sequence[str]) -> Choices:
        """From choice.json of the real-only runs and of each family. Raises DataError where one is missing."""
        real, chosen = RealChoice.read(runs / "real"), {name: PoolChoice.read(runs / name) for name in families}
        baselines = {}
        for name, choice in chosen.items():
            rows = {**real.validation, "replay": choice.validation["replay"]}
            baselines[name] = max(rows, key=lambda arm: rows[arm].mean)

        def rank(name: str) -> tuple[bool, float]:
            return not pretrained(name, families), chosen[name].validation["synthetic"].mean

        return cls(real, chosen, max(chosen, key=rank), baselines)

    def folder(self, runs: Path, family: str, arm: str) -> Path:
        """Where the weights of `arm` lie."""
        return runs / ("real" if arm in self.real.validation else family) / arm


def pretrained(family: str, families: Sequence[str]) -> bool:
    """Whether a family, or one that the ensemble pools, has pretrained weights."""
    members = [f for f in families if f != ENSEMBLE] if family == ENSEMBLE else [family]
    return any(registry.family(member).traits.pretrained for member in members)


def score(predictions: Predictions, resamples: Resamples, groups: Mapping[str, np.ndarray]) -> Scored:
    """Every metric of one arm under every resample; `groups` are the strata."""
    raw = predictions.metrics(resamples.weights)
    present = predictions.present
    recall = raw["recall"]
    # A class may be absent from a resample where it shares all its groups with rarer ones: the mean is over the rest.
    metrics = {"balanced_accuracy": np.nanmean(recall[:, :, present], 2), "macro_f1": np.nanmean(raw["f1"][:, :, present], 2)}
    for name, members in groups.items():
        held = np.intersect1d(members, present)
        if len(held):
            metrics[f"{name}_recall"] = np.nanmean(recall[:, :, held], 2)
    for name in ("auroc", "average_precision"):
        metrics[name] = np.nanmean(raw[name][:, :, present], 2)
    return Scored({**metrics, "calibration_error": raw["calibration_error"]}, {name: raw[name] for name in PER_CLASS})


def predictions(folder: Path, seeds: int, images: Tensor, targets: np.ndarray) -> Predictions:
    """One arm's predictions of all seeds."""
    networks = [classifier.load(folder / f"{i}.safetensors") for i in range(seeds)]
    return Predictions(np.stack([classifier.predict(network, images) for network in networks]), targets)


def evaluate(params: Params, classes: list[str], runs: Path, train: Manifest, test: Manifest) -> Results:
    """Score the runs in `runs` on the test rows. Raises DataError where a run is missing or torn."""
    settings, seeds = params.evaluate, params.arms.seeds
    choices = Choices.read(runs, params.pools)
    primary, baseline = choices.primary, choices.baselines[choices.primary]
    images, targets = test.images(), test.targets(classes).numpy()
    counts = train.counts(classes)
    members = strata(counts.tolist(), settings.tail)
    resamples = resample(targets, test.column("group"), n_seeds=seeds, n=settings.bootstrap, seed=params.seed)

    wanted = [(primary, arm) for arm in [*choices.real.validation, *choices.families[primary].validation]]
    wanted += [(f, arm) for f in choices.families if f != primary for arm in dict.fromkeys([choices.baselines[f], "synthetic"])]
    unique = {key: choices.folder(runs, *key) for key in wanted}
    predicted = {folder: predictions(folder, seeds, images, targets) for folder in dict.fromkeys(unique.values())}
    plain = reference.probabilities(train, classes, images, params.seed)
    references = {name: Predictions(p, targets) for name, p in plain.items()}
    with ThreadPoolExecutor() as pool:
        everything = [*predicted.values(), *references.values()]
        scores = pool.map(lambda p: score(p, resamples, members), everything)
        every = 0.5 if sys.stderr.isatty() else 10.0
        done = list(tqdm(scores, total=len(everything), desc="evaluate", unit=" arms", mininterval=every, dynamic_ncols=True))
    scored = dict(zip([*predicted, *references], done, strict=True))
    arms = {arm: scored[unique[primary, arm]] for family, arm in wanted if family == primary}

    def read(values: np.ndarray) -> Interval:
        return interval(
            values,
            resamples.seeds[:, : values.shape[1]] if values.shape[1] > 1 else np.ones((len(values), 1)),
            settings.confidence,
        )

    def gain(arm: Scored, over: Scored) -> dict[str, Interval]:
        return {name: read(arm.metrics[name] - over.metrics[name]) for name in arm.metrics}

    def table(one: Scored) -> dict[str, Any]:
        return {name: read(values).within(0.0, 1.0).json() for name, values in one.metrics.items()}

    def accuracy(arm: str) -> np.ndarray:
        return arms[arm].metrics["balanced_accuracy"]

    means = {name: row.mean for name, row in choices.real.validation.items()}
    own = choices.real.best_real_arm  # what synthetic images are added to; the baseline may be `replay`
    gains = {name: gain(arm, arms[baseline]) for name, arm in arms.items() if name != baseline}
    generators = {}
    for family in choices.families:
        over = gain(scored[unique[family, "synthetic"]], scored[unique[family, choices.baselines[family]]])
        generators[family] = {
            "verdict": verdict(over["balanced_accuracy"]),
            "gain": {name: value.json() for name, value in over.items()},
            "baseline": choices.baselines[family],
            "pretrained": pretrained(family, params.generators),
        }
    metrics = {
        "verdict": generators[primary]["verdict"],
        "gain": generators[primary]["gain"],
        "baseline": baseline,
        "generator": primary,
        "generators": generators,
        "arms": {name: table(arm) for name, arm in arms.items()},
        "reference": {name: table(scored[name]) for name in references},
        "decomposition": {
            part: read(accuracy(arm) - accuracy(over)).json() | {"arm": arm, "over": over}
            for part, (arm, over) in equivalent.parts(means, own, choices.real.teacher, recipes(params.classifier)).items()
        },
    }
    if points := choices.real.curve:
        of_points = [predictions(runs / "real/curve" / str(p.extra), seeds, images, targets) for p in points]
        curve = [accuracy(own), *(p.balanced_accuracy(resamples.weights) for p in of_points)]
        metrics["equivalent_real_images"] = _worth(points, curve, accuracy("synthetic"), resamples, settings.confidence)
    present = np.unique(targets)
    per_class = {
        metric: {
            name: {classes[c]: read(arm.per_class[metric][:, :, c]).within(0.0, 1.0).json() for c in present}
            for name, arm in arms.items()
        }
        for metric in PER_CLASS
    }
    details = {
        "classes": classes,
        "train_counts": dict(zip(classes, counts.tolist(), strict=True)),
        "test_counts": dict(zip(classes, test.counts(classes).tolist(), strict=True)),
        "strata": {name: [classes[c] for c in ids] for name, ids in members.items()},
        **per_class,
        # Row 0 is the test rows as they are.
        "per_seed": {name: {key: values[0].tolist() for key, values in arm.metrics.items()} for name, arm in arms.items()},
        "choice": _choice(choices),
        "seeds": seeds,
        "confidence": settings.confidence,
        "warnings": _warnings(params, classes, counts, test, choices, metrics),
        "settings": params.model_dump(mode="json", by_alias=True, exclude={"engine"}),
    }
    return Results(metrics, [(arm, name, value) for arm, rows in gains.items() for name, value in rows.items()], details)


def _worth(
    points: Sequence[CurvePoint], curve: Sequence[np.ndarray], synthetic: np.ndarray, made: Resamples, confidence: float
) -> dict[str, Any]:
    """The learning curve and the worth on it: `curve` holds scores (R + 1, S) without more images, then at each of `points`."""
    extra = [0, *(point.extra for point in points)]
    known = [interval(values, made.seeds, confidence).within(0.0, 1.0) for values in curve]
    line = np.stack([resampled(values, made.seeds, confidence) for values in curve], 1)
    scores = resampled(synthetic, made.seeds, confidence)
    return {
        "curve": [[m, i.estimate, i.low, i.high] for m, i in zip(extra, known, strict=True)],
        "added": [0, *(sum(point.added) for point in points)],
        **equivalent.in_real_images(extra, np.array(points[-1].added), line, scores, confidence),
    }


def _choice(choices: Choices) -> dict[str, Any]:
    family = choices.families[choices.primary]
    validation = {**choices.real.validation, **family.validation}
    return {
        "baseline": choices.baselines[choices.primary],
        "recipe": family.best_real_arm,
        "teacher": choices.real.teacher,
        "validation": {arm: row.mean for arm, row in validation.items()},
        **family.model_dump(include={"synthetic_fraction", "labels", "grid"}),
    }


def _warnings(
    params: Params, classes: list[str], counts: np.ndarray, test: Manifest, choices: Choices, metrics: Mapping[str, Any]
) -> list[str]:
    """What a reader must know before believing the numbers."""
    family, out = choices.families[choices.primary], []
    if params.arms.seeds < MIN_SEEDS:
        out.append(f"{params.arms.seeds} seeds: fewer than {MIN_SEEDS} say little, seeds alone move results by points")
    labels, groups = test.column("label"), test.column("group")
    for name in classes:
        n = len(np.unique(groups[labels == name]))
        if n < MIN_GROUPS:
            out.append(f"class {name} has {n} independent test groups: its recall, and so the verdict, rests on few")
    if len(set(counts.tolist())) == 1:
        out.append("all classes have the same number of train images: head, middle and tail are not told apart")
    if family.synthetic_fraction == 0:
        out.append(
            "validation chose synthetic fraction 0: no synthetic images were used, `synthetic` is the best real-only arm itself"
        )
    if missing := [classes[c] for c in family.missing.short]:
        out.append(f"too few accepted images to fill {', '.join(missing)}")
    if missing := [classes[c] for c in family.missing.none]:
        out.append(f"no accepted image of {', '.join(missing)}, so that synthetic_only cannot know them")
    if params.arms.curve:
        out += _curve_warnings(classes, choices.real.curve)
    for name in params.generators:
        traits = registry.family(name).traits
        if traits.pretrained:
            out.append(f"{name} is {PRETRAINED}")
        elif not traits.sources_known:
            out.append(f"{name}: nobody can say whether test images took part in making its images")
    best = metrics["arms"][metrics["baseline"]]["balanced_accuracy"]["estimate"]
    for name, row in metrics["reference"].items():
        if row["balanced_accuracy"]["estimate"] > best:
            out.append(f"{name} beats the best real-only arm: the classifier is not tuned to these data")
    return out


def _curve_warnings(classes: list[str], points: Sequence[CurvePoint] | None) -> list[str]:
    if not points:
        return ["scarcity left no real image out that could serve a learning curve: worth in real images unknown"]
    last = points[-1]
    short = [name for name, n in zip(classes, last.added, strict=True) if n < last.extra]
    if not short:
        return []
    return [f"the learning curve ends with fewer than {last.extra} more images of {', '.join(short)}: there are no more"]
