"""What the stage `evaluate` found, and how it is written: metrics.json, gains.csv, details.json.

A gain is an arm minus another, as the numbers are: for a metric that is better when it is low, a negative one is good. Only the
verdict knows the direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.encoders.base import Origin
from pipeline.evaluation.equivalent import EquivalentImages
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.near import Pair

Intervals = Mapping[str, Interval]


@dataclass(frozen=True)
class ArmResult:
    """One arm, or one reference classifier: `metrics` by name, `per_class` by name and class, `per_seed` by name."""

    metrics: Intervals
    per_class: Mapping[str, Intervals]
    per_seed: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Gain:
    """`arm` minus `over` in every metric, paired."""

    arm: str
    over: str
    metrics: Intervals


@dataclass(frozen=True)
class GeneratorResult:
    """One generator: what `synthetic` gains with its images over its own baseline."""

    gain: Gain
    verdict: str
    pretrained: bool

    def json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "gain": _json(self.gain.metrics),
            "baseline": self.gain.over,
            "pretrained": self.pretrained,
        }


@dataclass(frozen=True)
class Part:
    """A part of the gain: `arm` minus `over` in the primary metric."""

    arm: str
    over: str
    value: Interval

    def json(self) -> dict[str, Any]:
        return {**self.value.json(), "arm": self.arm, "over": self.over}


@dataclass(frozen=True)
class Setting:
    """Under what the numbers came about: what details.json says beside them.

    Counts are images of each class; `strata` has the classes of head, middle and tail; `choice` is what validation chose.
    """

    train_counts: Mapping[str, int]
    test_counts: Mapping[str, int]
    strata: Mapping[str, Sequence[str]]
    choice: Mapping[str, Any]
    seeds: int
    confidence: float
    warnings: Sequence[str]
    params: Mapping[str, Any]
    encoder: Origin | None = None  # of the pretrained encoder, where one is named
    headroom: str = ""  # what validation rows say of it

    def json(self) -> dict[str, Any]:
        return {
            "classes": list(self.train_counts),
            "train_counts": dict(self.train_counts),
            "test_counts": dict(self.test_counts),
            "strata": {name: list(classes) for name, classes in self.strata.items()},
            "choice": dict(self.choice),
            "seeds": self.seeds,
            "confidence": self.confidence,
            "warnings": list(self.warnings),
            "settings": dict(self.params),
            **({"encoder": asdict(self.encoder)} if self.encoder else {}),
            **({"headroom": self.headroom} if self.headroom else {}),
        }


@dataclass(frozen=True)
class Results:
    """Everything that was measured. `generator` is the primary one; `metric` names the primary metric where it is told.

    `arms` are those of the primary generator, `over_baseline` each of them against its baseline.
    """

    metric: str | None
    generator: str
    generators: Mapping[str, GeneratorResult]
    arms: Mapping[str, ArmResult]
    references: Mapping[str, ArmResult]
    over_baseline: Sequence[Gain]
    parts: Mapping[str, Part]
    equivalent: EquivalentImages | None
    setting: Setting
    outside: Sequence[str] = ()  # arms and references that know of images from outside the project
    near: Sequence[Pair] = ()  # near-duplicates across splits

    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        primary = self.generators[self.generator].json()
        found = {
            **{name: primary[name] for name in ("verdict", "gain", "baseline")},
            "generator": self.generator,
            "generators": {name: result.json() for name, result in self.generators.items()},
            "arms": {name: _json(arm.metrics) for name, arm in self.arms.items()},
            "reference": {name: _json(arm.metrics) for name, arm in self.references.items()},
            "decomposition": {name: part.json() for name, part in self.parts.items()},
        }
        if self.equivalent:
            found["equivalent_real_images"] = self.equivalent.json()
        if self.metric:
            found["metric"] = self.metric
        if self.outside:
            found["outside_knowledge"] = list(self.outside)
        return found

    def gains(self) -> list[tuple[str, str, float, float, float]]:
        """The rows of gains.csv: arm, metric, estimate, low, high."""
        return [
            (gain.arm, name, value.estimate, value.low, value.high)
            for gain in self.over_baseline
            for name, value in gain.metrics.items()
        ]

    def details(self) -> dict[str, Any]:
        """details.json."""
        kinds = dict.fromkeys(kind for arm in self.arms.values() for kind in arm.per_class)
        return {
            **self.setting.json(),
            **{kind: {name: _json(arm.per_class[kind]) for name, arm in self.arms.items()} for kind in kinds},
            "per_seed": {
                name: {metric: list(values) for metric, values in arm.per_seed.items()} for name, arm in self.arms.items()
            },
        }


def _json(values: Intervals) -> dict[str, dict[str, float]]:
    return {name: value.json() for name, value in values.items()}
