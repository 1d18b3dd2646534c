"""Paired intervals by hierarchical bootstrap: seeds, then groups.

Resample r draws S of the S seeds and, within each class, as many groups as it has, with replacement. Every arm gets the same
draws, so that a difference of two arms is taken within a resample, and what moves both cancels. Groups (one object,
patient or board) are drawn whole, since their images are not independent. A group with images of several classes is drawn
with its rarest class, so that no class that has test images of its own vanishes.

Let v_rs be a metric on the groups of resample r under seed s, and k_rs how often r drew seed s. With few seeds the plain
bootstrap is too narrow: the spread of S draws is (S - 1) / S of the variance, and S points say little of their own spread. So
the seeds' part alone is widened by the factor that makes it a t interval (Hesterberg, 2015: expanded percentiles):

    theta_r = m_r + c (sum_s k_rs v_rs / S - m_r),     m_r = mean_s v_rs,     c = sqrt(S / (S - 1)) t_{S-1} / z

with t and z the quantiles at the confidence asked for. The interval is the percentiles of theta_r; the estimate is the metric
on the rows as they are, mean over seeds. One seed has no spread, and the interval then says nothing about seeds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from pipeline.core.seeds import numpy_rng


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    estimate: float
    low: float
    high: float

    def within(self, least: float, most: float) -> Interval:
        """Cut to the range of the metric: a widened interval may reach beyond it."""
        return Interval(*(min(max(value, least), most) for value in (self.estimate, self.low, self.high)))

    def json(self) -> dict[str, float]:
        """{"estimate", "low", "high"}."""
        return asdict(self)


@dataclass(frozen=True)
class Resamples:
    """Row 0 of both is the sample as it is, so that estimates and resamples come from the same arithmetic."""

    weights: np.ndarray  # uint8 (n, R + 1): how often each image is drawn
    seeds: np.ndarray  # float64 (R + 1, S): how often each seed is drawn

    @property
    def n_seeds(self) -> int:
        """S."""
        return int(self.seeds.shape[1])


def resample(targets: np.ndarray, groups: np.ndarray, *, n_seeds: int, n: int, seed: int) -> Resamples:
    """`n` resamples of images with `targets` int (m,) and `groups` (m,) of any type that sorts."""
    names, group = np.unique(groups, return_inverse=True)
    rarity = np.bincount(targets)[targets] * (targets.max() + 1) + targets  # rarest class first, ties by class
    rarest = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(rarest, group, rarity)
    rng = numpy_rng(seed, "bootstrap", "groups")
    counts = np.ones((len(names), n + 1), np.uint8)
    for stratum in np.unique(rarest):
        members = np.flatnonzero(rarest == stratum)
        drawn = rng.integers(len(members), size=(n, len(members))) + np.arange(n)[:, None] * len(members)
        counts[members, 1:] = np.bincount(drawn.ravel(), minlength=n * len(members)).reshape(n, -1).T
    seeds = numpy_rng(seed, "bootstrap", "seeds").multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n)
    return Resamples(counts[group], np.vstack([np.ones(n_seeds), seeds]))


def resampled(values: np.ndarray, seeds: np.ndarray, confidence: float) -> np.ndarray:
    """theta (R + 1,), row 0 the estimate: values (R + 1, S) under `seeds` (R + 1, S) of Resamples. Linear in the values."""
    s = seeds.shape[1]
    centre = values.mean(1)
    spread = (values * seeds).sum(1) / s - centre
    upper = (1 + confidence) / 2
    widen = np.sqrt(s / (s - 1)) * stats.t.ppf(upper, s - 1) / stats.norm.ppf(upper) if s > 1 else 0.0
    theta: np.ndarray = centre + widen * spread
    theta[0] = centre[0]
    return theta


def interval(values: np.ndarray, seeds: np.ndarray, confidence: float) -> Interval:
    """The interval of a metric or a difference of two: values (R + 1, S) under `seeds` (R + 1, S) of Resamples.

    Resamples without a value (a class that vanished with a rarer one) are left out. Rounded to six decimals, so that what is
    decided by an interval is decided by what is printed.
    """
    estimate, *rest = resampled(values, seeds, confidence)
    theta, upper = np.array(rest), (1 + confidence) / 2
    low, high = np.quantile(theta[np.isfinite(theta)], [1 - upper, upper])
    return Interval(*(round(float(v), 6) for v in (estimate, low, high)))
