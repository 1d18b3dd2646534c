"""How many real images would do as much as the synthetic ones, and what the gain is made of.

**Equivalent real images.** f(m) is the score of the best real-only arm on the train rows and m more real images of each class.
It is known at m_0 = 0 < m_1 < … < m_K, and linear between. The equivalent of the synthetic images is the first m at which f
reaches the score of `synthetic`: 0 where `synthetic` is not above f(0), and more than m_K where it is above all of f. Scores
are those of the primary metric, negated where low is good.

Scores of a few runs go up and down, although more images do no harm in truth. So f is first made non-decreasing by isotonic
regression (Barlow et al., 1972), which gives the non-decreasing values nearest to those measured. A running maximum would carry
the luckiest point on to all later ones: f would be too high, and the equivalent too low.

All of this is done within each resample of pipeline.evaluation.intervals, with the same draws of seeds and groups for every
run. The interval of the equivalent therefore lies above 0 where that of `synthetic` minus f(0) does. Where f ends too early,
m_K stands for a larger number, and the end of the interval is open.

**Parts of the gain.** Differences of two arms each, paired:

    prior_shift      a recipe with a logit offset minus the same without: what moving decisions towards rare classes gives alone
    regularisation   `replay` minus the best real-only arm: what the synthetic fraction and the labels give with no new image
    new_content      `synthetic` minus `replay`: what only new images give

The last two add up to `synthetic` minus the best real-only arm. The first is no part of that difference, since added rows shift
no prior (pipeline.arms). It is there to compare with. It is measured on the best recipe where both of its arms were trained,
else on the pair whose arm with an offset is best on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.arms import Recipe
from pipeline.classifier.choice import CurvePoint
from pipeline.evaluation.intervals import Interval, Resamples, interval, resampled
from pipeline.metrics.base import Metric

ARM = "synthetic"


@dataclass(frozen=True)
class EquivalentImages:
    """The learning curve, and how many more real images do as much as the synthetic ones.

    `curve` has (more images of each class, score with its interval), `added` the images of all classes that each point has more
    than the first. The equivalent is given of each class, with its interval, and of all classes together. Where a number is
    `beyond` the curve, the last point stands for it.
    """

    curve: Sequence[tuple[int, Interval]]
    added: Sequence[int]
    real_images_per_class: float
    low: float
    high: float
    beyond: bool
    low_beyond: bool
    high_beyond: bool
    real_images: float

    @classmethod
    def of(
        cls,
        points: Sequence[CurvePoint],
        scores: Sequence[np.ndarray],
        synthetic: np.ndarray,
        made: Resamples,
        confidence: float,
        metric: Metric,
    ) -> EquivalentImages:
        """`scores` holds those (R + 1, S) of the best real-only arm, then of the same with the images of each of `points`."""
        extra = [0, *(point.extra for point in points)]
        line = np.stack([metric.merit(resampled(values, made.seeds, confidence)) for values in scores], 1)
        level = metric.merit(resampled(synthetic, made.seeds, confidence))
        return cls(
            curve=[(m, interval(v, made.seeds, confidence).within(0.0, 1.0)) for m, v in zip(extra, scores, strict=True)],
            added=[0, *(sum(point.added) for point in points)],
            **in_real_images(extra, np.array(points[-1].added), line, level, confidence),
        )

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"curve": [[m, i.estimate, i.low, i.high] for m, i in self.curve]}


def non_decreasing(values: np.ndarray) -> np.ndarray:
    """Isotonic regression of each row v (R, K): y_i = max over a <= i of min over b >= i of mean(v_a … v_b)."""
    k = values.shape[1]
    total = np.concatenate([np.zeros((len(values), 1)), values.cumsum(1)], 1)
    out = np.full(values.shape, -np.inf)
    for a in range(k):
        means = (total[:, a + 1 :] - total[:, [a]]) / np.arange(1, k - a + 1)
        least = np.minimum.accumulate(means[:, ::-1], 1)[:, ::-1]  # over all ends from b on
        out[:, a:] = np.maximum(out[:, a:], least)
    return out


def reached(extra: Sequence[int], curve: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m (R,), whether the whole curve lies below (R,)) for `curve` (R, K) at `extra` (K,), from 0 on, and `scores` (R,).

    m is the last of `extra` where the whole curve lies below.
    """
    x, y = np.asarray(extra, float), non_decreasing(curve)
    there = y >= scores[:, None]
    i, beyond = there.argmax(1), ~there.any(1)
    rows, before = np.arange(len(y)), np.maximum(i - 1, 0)
    rise = y[rows, i] - y[rows, before]
    share = np.divide(scores - y[rows, before], rise, out=np.zeros(len(y)), where=rise > 0)
    m = np.where(i > 0, x[before] + share * (x[i] - x[before]), 0.0)
    none = scores <= curve[:, 0]  # pooling may have taken f(0) below what was measured
    return np.where(none, 0.0, np.where(beyond, x[-1], m)), beyond & ~none


def in_real_images(
    extra: Sequence[int], added: np.ndarray, curve: np.ndarray, scores: np.ndarray, confidence: float
) -> dict[str, Any]:
    """The numbers of EquivalentImages, from `curve` (R + 1, K) at `extra` (K,) and `scores` (R + 1,) of `synthetic`.

    Both are as intervals.resampled gives them, and high is good. `added` (k,) is how many images of each class the last point
    has more than the first.
    """
    known = np.isfinite(curve).all(1) & np.isfinite(scores)
    m, beyond = reached(extra, curve[known], scores[known])
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile(m[1:], ends)
    return {
        "real_images_per_class": round(float(m[0]), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "beyond": bool(beyond[0]),
        # Open where too many resamples leave the curve for its end to be a quantile of theirs.
        "low_beyond": bool(beyond[1:].mean() > ends[1]),
        "high_beyond": bool(beyond[1:].mean() > ends[0]),
        "real_images": round(float(np.minimum(added, m[0]).sum()), 3),
    }


def parts(
    validation: Mapping[str, float], best: str, teacher: str, known: Mapping[str, Recipe], metric: Metric
) -> dict[str, tuple[str, str]]:
    """(arm, arm that it is compared with) by the name of the part. `validation` has the mean of each real-only arm.

    `best` is the best of these arms, `teacher` the best of those that are recipes by themselves, which are in
    `known`. Without a pair of arms that differ in the offset alone there is no prior_shift.
    """

    def plain(arm: str) -> Recipe:
        return replace(known[arm], tau=0.0)

    trained = [arm for arm in validation if arm in known]
    pairs = [(a, b) for a in trained for b in trained if known[a].tau > 0 and known[b] == plain(a)]
    own = [pair for pair in pairs if plain(pair[0]) == plain(teacher)]
    shift = max(own or pairs, key=lambda pair: metric.merit(validation[pair[0]]), default=None)
    return {
        **({"prior_shift": shift} if shift else {}),
        "regularisation": ("replay", best),
        "new_content": (ARM, "replay"),
    }
