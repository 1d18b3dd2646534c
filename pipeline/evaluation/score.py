"""From trained runs and test rows to numbers: per arm the metrics with intervals, the gains and the verdict.

The primary metric, params.evaluate.metric, decides; the others are told. The baseline of `synthetic` is the arm with the best
validation score of those that see real images alone, `replay` included: the stronger the baseline, the more a gain says. Of
several generators the primary one is that whose `synthetic` is best on validation. Those with pretrained weights stand apart,
since they may have seen the test images: one of them is primary only where there is no other. Nothing is chosen by test rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.arms import recipes
from pipeline.classifier import headroom, networks
from pipeline.classifier import train as classifier
from pipeline.classifier.choice import CurvePoint, PoolChoice, RealChoice
from pipeline.classifier.inputs import Inputs
from pipeline.config import ENSEMBLE, Mode, Params
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.encoders.base import Origin, fixed
from pipeline.evaluation import equivalent, near, reference
from pipeline.evaluation.equivalent import EquivalentImages
from pipeline.evaluation.intervals import Interval, Resamples, interval, resample
from pipeline.evaluation.results import ArmResult, Gain, GeneratorResult, Part, Results, Setting
from pipeline.evaluation.verdict import strata, verdict
from pipeline.generators import registry
from pipeline.metrics.base import Metric
from pipeline.metrics.predictions import Predictions
from pipeline.metrics.registry import named, primary
from pipeline.metrics.standard import AveragePrecision, BalancedAccuracy, MacroF1

PER_CLASS = ("recall", "auroc", "average_precision")
MIN_SEEDS = 5
NEAR = "near_duplicates.csv"  # beside details.json
MIN_GROUPS = 10
KNOWN_WEIGHTS = "nobody can say whether test images were among these; arms that look through it are compared with one another"
# Data sets that are known to lie in what encoders are trained on, by words in their names.
KNOWN_TO_HOLD = {"ImageNet": ("imagenette", "imagewoof", "stl10", "stl-10", "imagenet")}
PRETRAINED = "pretrained: it may have seen the test images, so its gain stands apart from the others"


@dataclass(frozen=True)
class Scored:
    """One arm: `metrics` float64 (R + 1, S) by name, `per_class` (R + 1, S, k) by name."""

    metrics: Mapping[str, np.ndarray]
    per_class: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Choices:
    """What validation chose: the primary family, and each family's baseline of `synthetic`."""

    real: RealChoice
    families: Mapping[str, PoolChoice]
    primary: str
    baselines: Mapping[str, str]

    @classmethod
    def read(cls, runs: Path, families: Sequence[str], metric: Metric) -> Choices:
        """From choice.json of the real-only runs and of each family. Raises DataError where one is missing."""
        real, chosen = RealChoice.read(runs / "real"), {name: PoolChoice.read(runs / name) for name in families}
        baselines = {}
        for name, choice in chosen.items():
            rows = {**real.validation, "replay": choice.validation["replay"]}
            baselines[name] = metric.best({arm: row.mean for arm, row in rows.items()})

        def rank(name: str) -> tuple[bool, float]:
            return not pretrained(name, families), metric.merit(chosen[name].validation["synthetic"].mean)

        return cls(real, chosen, max(chosen, key=rank), baselines)

    def folder(self, runs: Path, family: str, arm: str) -> Path:
        """Where the weights of `arm` lie."""
        return runs / ("real" if arm in self.real.validation else family) / arm


def pretrained(family: str, families: Sequence[str]) -> bool:
    """Whether a family, or one that the ensemble pools, has pretrained weights."""
    members = [f for f in families if f != ENSEMBLE] if family == ENSEMBLE else [family]
    return any(registry.family(member).traits.pretrained for member in members)


def score(predictions: Predictions, resamples: Resamples, groups: Mapping[str, np.ndarray], metric: Metric) -> Scored:
    """Every metric of one arm under every resample; `groups` are the strata."""
    raw = predictions.metrics(resamples.weights)
    present = predictions.present
    recall = raw["recall"]
    # A class may be absent from a resample where it shares all its groups with rarer ones: the mean is over the rest.
    found = {
        BalancedAccuracy.name: BalancedAccuracy.over(recall[:, :, present]),
        MacroF1.name: MacroF1.over(raw["f1"][:, :, present]),
    }
    for name, members in groups.items():
        held = np.intersect1d(members, present)
        if len(held):
            found[f"{name}_recall"] = np.nanmean(recall[:, :, held], 2)
    found["auroc"] = np.nanmean(raw["auroc"][:, :, present], 2)
    found[AveragePrecision.name] = AveragePrecision.over(raw["average_precision"][:, :, present])
    found["calibration_error"] = raw["calibration_error"]
    if metric.name not in found:
        found[metric.name] = metric.resample(predictions, resamples.weights)
    return Scored(found, {name: raw[name] for name in PER_CLASS})


@dataclass(frozen=True)
class Asked:
    """Rows that classifiers are asked about, as the classifiers of each mode are handed them: each is made once."""

    params: Params
    shape: tuple[int, int, int]
    rows: Manifest
    targets: np.ndarray
    made: dict[Mode, Tensor] = field(default_factory=dict)

    def inputs(self, mode: Mode) -> Tensor:
        """Images uint8 (n, c, h, w), or features (n, 1 + v, d)."""
        if mode not in self.made:
            self.made[mode] = torch.from_numpy(Inputs.of(self.params, self.shape, mode).to_score(self.rows))
        return self.made[mode]

    def of(self, folder: Path, seeds: int) -> Predictions:
        """One arm's predictions of all seeds. Raises DataError where a run is missing or torn."""
        found = []
        for i in range(seeds):
            network = classifier.load(folder / f"{i}.safetensors")
            found.append(classifier.predict(network, self.inputs(networks.mode(network))))
        return Predictions(np.stack(found), self.targets)


@dataclass(frozen=True)
class Reader:
    """From values under every resample (R + 1, S) to intervals. References have no seeds: S is 1 there."""

    resamples: Resamples
    confidence: float

    def interval(self, values: np.ndarray) -> Interval:
        """Of a metric or a difference of two."""
        seeds = self.resamples.seeds if values.shape[1] > 1 else np.ones((len(values), 1))
        return interval(values, seeds, self.confidence)

    def arm(self, one: Scored, classes: Mapping[int, str]) -> ArmResult:
        """One arm; `classes` are the names of those that have test rows."""
        return ArmResult(
            metrics={name: self.interval(values).within(0.0, 1.0) for name, values in one.metrics.items()},
            per_class={
                kind: {name: self.interval(values[:, :, c]).within(0.0, 1.0) for c, name in classes.items()}
                for kind, values in one.per_class.items()
            },
            per_seed={name: values[0].tolist() for name, values in one.metrics.items()},  # row 0: the test rows as they are
        )

    def gain(self, arm: str, over: str, scored: Mapping[str, Scored]) -> Gain:
        """`arm` minus `over` in every metric."""
        a, b = scored[arm].metrics, scored[over].metrics
        return Gain(arm, over, {name: self.interval(a[name] - b[name]) for name in a})


def evaluate(params: Params, prepared: Prepared, runs: Path, test: Manifest) -> Results:
    """Score the runs in `runs` on the test rows. Raises DataError where a run is missing or torn."""
    settings, seeds, metric = params.evaluate, params.arms.seeds, named(params.evaluate.metric)
    classes, train = prepared.classes, prepared.train()
    choices = Choices.read(runs, params.pools, metric)
    chosen, baseline = choices.primary, choices.baselines[choices.primary]
    targets = test.targets(classes).numpy()
    asked = Asked(params, prepared.shape, test, targets)
    encoder = fixed("pretrained", prepared.shape, params.encoder, "encoder.name") if params.encoder.name != "none" else None
    alike = near.pairs(params, encoder, train, prepared.val(), test) if encoder else []
    origin = encoder.origin if encoder else None
    counts, test_counts = (rows.counts(classes).tolist() for rows in (train, test))
    members = strata(counts, settings.tail)
    resamples = resample(targets, test.column("group"), n_seeds=seeds, n=settings.bootstrap, seed=params.seed)
    reader = Reader(resamples, settings.confidence)
    present = {int(c): classes[c] for c in np.unique(targets)}

    # All arms of the primary family; of another what its verdict is about.
    wanted = {
        family: list(dict.fromkeys([choices.baselines[family], "synthetic"]))
        if family != chosen
        else [*choices.real.validation, *choice.validation]
        for family, choice in choices.families.items()
    }
    folders = {family: {arm: choices.folder(runs, family, arm) for arm in arms} for family, arms in wanted.items()}
    unique = dict.fromkeys(folder for family in (chosen, *folders) for folder in folders[family].values())
    predicted = {folder: asked.of(folder, seeds) for folder in unique}
    plain = reference.probabilities(params, prepared.shape, train, test, classes)
    references = {name: Predictions(p, targets) for name, p in plain.items()}
    done = _scores([*predicted.values(), *references.values()], lambda p: score(p, resamples, members, metric))
    by_folder = dict(zip([*predicted, *references], done, strict=True))
    scored = {family: {arm: by_folder[folder] for arm, folder in arms.items()} for family, arms in folders.items()}

    def generator(family: str) -> GeneratorResult:
        gain = reader.gain("synthetic", choices.baselines[family], scored[family])
        return GeneratorResult(gain, verdict(gain.metrics[metric.name], metric), pretrained(family, params.generators))

    own = choices.real.best_real_arm  # what synthetic images are added to; the baseline may be `replay`
    values = {arm: one.metrics[metric.name] for arm, one in scored[chosen].items()}
    means = {name: row.mean for name, row in choices.real.validation.items()}
    mode = choices.real.mode
    known = {params.arm_name(mode, arm): recipe for arm, recipe in recipes(params.in_mode(mode)).items()}
    parts = equivalent.parts(means, own, choices.real.teacher, known, metric) | _encoder_part(choices.real, metric)
    equal = None
    if points := choices.real.curve:
        of_points = [asked.of(runs / "real/curve" / str(p.extra), seeds) for p in points]
        curve = [values[own], *(metric.resample(p, resamples.weights) for p in of_points)]
        equal = EquivalentImages.of(points, curve, values["synthetic"], resamples, settings.confidence, metric)
    arms = {name: reader.arm(one, present) for name, one in scored[chosen].items()}
    of_references = {name: reader.arm(by_folder[name], present) for name in references}
    return Results(
        metric=None if metric.name == primary({}) else metric.name,
        generator=chosen,
        generators={family: generator(family) for family in choices.families},
        arms=arms,
        references=of_references,
        over_baseline=[reader.gain(name, baseline, scored[chosen]) for name in arms if name != baseline],
        parts={name: Part(arm, over, reader.interval(values[arm] - values[over])) for name, (arm, over) in parts.items()},
        equivalent=equal,
        setting=Setting(
            train_counts=dict(zip(classes, counts, strict=True)),
            test_counts=dict(zip(classes, test_counts, strict=True)),
            strata={name: [classes[c] for c in ids] for name, ids in members.items()},
            choice=_choice(choices),
            seeds=seeds,
            confidence=settings.confidence,
            encoder=origin,
            headroom=headroom.said(choices.real, metric, classes),
            warnings=[
                *_warnings(params, classes, counts, test, choices),
                *_known_weights(params, origin),
                *near.warning(alike, NEAR),
                *_better_references(arms[baseline], of_references, metric),
            ],
            params=params.model_dump(mode="json", by_alias=True, exclude={"engine"}),
        ),
        outside=_outside(params, choices, [*arms, *of_references]),
        near=alike,
    )


def _outside(params: Params, choices: Choices, names: Sequence[str]) -> list[str]:
    """Of these arms and references those that know of images from outside the project: by an encoder, or by a generator."""

    def knows(name: str) -> bool:
        mode, _, own = name.rpartition(":")
        if name in choices.real.validation:
            return (mode or params.modes[0]) != "scratch"
        if mode == "encoder":  # a reference
            return True
        drawn = own.startswith("synthetic") or own == "shuffled"
        of_pool = own in choices.families[choices.primary].validation
        return of_pool and (choices.real.mode != "scratch" or (drawn and pretrained(choices.primary, params.generators)))

    return [name for name in names if knows(name)]


def _encoder_part(real: RealChoice, metric: Metric) -> dict[str, tuple[str, str]]:
    """What the encoder alone is worth: the best real-only arm with it, and that without; {} unless both were trained."""
    best = real.best_of_modes(metric)
    with_encoder = {arm: real.validation[arm].mean for mode, arm in best.items() if mode != "scratch"}
    if "scratch" not in best or not with_encoder:
        return {}
    return {"encoder": (metric.best(with_encoder), best["scratch"])}


def _scores(all_of_them: Sequence[Predictions], one: Callable[[Predictions], Scored]) -> list[Scored]:
    """One after the other in threads, with a bar."""
    every = 0.5 if sys.stderr.isatty() else 10.0
    with ThreadPoolExecutor() as pool:
        done = pool.map(one, all_of_them)
        return list(tqdm(done, total=len(all_of_them), desc="evaluate", unit=" arms", mininterval=every, dynamic_ncols=True))


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


def _warnings(params: Params, classes: list[str], counts: Sequence[int], test: Manifest, choices: Choices) -> list[str]:
    """What a reader must know before believing the numbers."""
    family, out = choices.families[choices.primary], []
    if (found := choices.real.headroom) and headroom.nothing_left(found):
        out.append(headroom.said(choices.real, named(params.evaluate.metric), classes))
    if params.arms.seeds < MIN_SEEDS:
        out.append(f"{params.arms.seeds} seeds: fewer than {MIN_SEEDS} say little, seeds alone move results by points")
    labels, groups = test.column("label"), test.column("group")
    for name in classes:
        n = len(np.unique(groups[labels == name]))
        if n < MIN_GROUPS:
            out.append(f"class {name} has {n} independent test groups: its recall, and so the verdict, rests on few")
    if len(set(counts)) == 1:
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
    return out


def _known_weights(params: Params, origin: Origin | None) -> list[str]:
    """What a reader must know of the encoder: which images shaped it, and whether these data are known to lie among them."""
    if origin is None:
        return []
    data = f"{params.data.name} {params.data.path}".lower()
    for images, names in KNOWN_TO_HOLD.items():
        if images in origin.trained_on and (found := next((name for name in names if name in data), None)):
            return [
                f"{params.encoder.name} was trained on {origin.trained_on}, which holds images of {found}: it knows test images"
            ]
    return [f"{params.encoder.name} was trained on {origin.trained_on}: {KNOWN_WEIGHTS}"]


def _better_references(baseline: ArmResult, references: Mapping[str, ArmResult], metric: Metric) -> list[str]:
    best = metric.merit(baseline.metrics[metric.name].estimate)
    better = [name for name, one in references.items() if metric.merit(one.metrics[metric.name].estimate) > best]
    return [f"{name} beats the best real-only arm: the classifier is not tuned to these data" for name in better]


def _curve_warnings(classes: list[str], points: Sequence[CurvePoint] | None) -> list[str]:
    if not points:
        return ["scarcity left no real image out that could serve a learning curve: equivalent real images unknown"]
    last = points[-1]
    short = [name for name, n in zip(classes, last.added, strict=True) if n < last.extra]
    if not short:
        return []
    return [f"the learning curve ends with fewer than {last.extra} more images of {', '.join(short)}: there are no more"]
