"""Resamples, and whether their intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.intervals import Interval, Resamples, interval, resample, resampled
from pipeline.evaluation.verdict import strata, verdict
from pipeline.metrics.standard import BalancedAccuracy


def test_the_first_row_is_the_sample_itself() -> None:
    made = resample(np.array([0, 0, 1]), np.array(["a", "b", "c"]), n_seeds=5, n=20, seed=0)
    assert made.weights[:, 0].tolist() == [1, 1, 1]
    assert made.seeds[0].tolist() == [1.0] * 5
    assert (made.seeds.sum(1) == 5).all()
    assert made.n_seeds == 5


def test_groups_are_drawn_whole_and_within_their_class() -> None:
    targets = np.repeat([0, 0, 0, 1, 1], 3)
    groups = np.repeat(np.array(list("abcde")), 3)
    made = resample(targets, groups, n_seeds=2, n=500, seed=0).weights.reshape(5, 3, -1)
    assert (made == made[:, :1]).all()
    assert (made[:3, 0].sum(0) == 3).all() and (made[3:, 0].sum(0) == 2).all()
    assert made[0, 0, 1:].mean() == pytest.approx(1.0, abs=0.15)
    assert made[0, 0, 1:].var() == pytest.approx(2 / 3, abs=0.15)


def test_no_class_with_images_of_its_own_vanishes() -> None:
    r = np.random.default_rng(0)
    targets, groups = r.choice(4, size=200, p=[0.7, 0.2, 0.08, 0.02]), r.integers(0, 60, 200)
    made = resample(targets, groups, n_seeds=1, n=1000, seed=1).weights
    for c in range(4):
        assert (made[targets == c].sum(0) > 0).all(), c


def test_a_group_of_several_classes_is_drawn_with_its_rarest() -> None:
    # Class 1 has images in two groups that are otherwise of class 0: drawn among the ten others they would often vanish.
    targets, groups = np.array([0] * 12 + [1] * 2), np.array([*range(12), 0, 1])
    made = resample(targets, groups, n_seeds=1, n=300, seed=0).weights
    assert (made[12] + made[13] == 2).all()
    assert (made[2:12].sum(0) == 10).all()


def test_resamples_are_a_function_of_the_seed() -> None:
    targets, groups = np.zeros(30, int), np.arange(30)
    first, again, other = (resample(targets, groups, n_seeds=3, n=10, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.weights, again.weights)
    np.testing.assert_array_equal(first.seeds, again.seeds)
    assert (first.weights != other.weights).any()


def test_with_seeds_alone_the_interval_is_the_t_interval() -> None:
    r = np.random.default_rng(0)
    scores = r.normal(0.8, 0.02, 12)
    seeds = np.vstack([np.ones(12), r.multinomial(12, np.full(12, 1 / 12), size=20000)])
    found = interval(np.broadcast_to(scores, (20001, 12)), seeds, 0.95)
    low, high = stats.t.interval(0.95, 11, scores.mean(), scores.std(ddof=1) / np.sqrt(12))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0015)
    assert found.estimate == pytest.approx(scores.mean(), abs=1e-6)


@pytest.mark.parametrize("n", [2, 5])
def test_the_spread_of_few_seeds_is_that_of_a_t_interval(n: int) -> None:
    r = np.random.default_rng(0)
    scores = r.normal(0.8, 0.02, n)
    seeds = np.vstack([np.ones(n), r.multinomial(n, np.full(n, 1 / n), size=40000)])
    theta = resampled(np.broadcast_to(scores, (40001, n)), seeds, 0.95)
    expected = scores.std(ddof=1) / np.sqrt(n) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    assert theta[1:].std() == pytest.approx(expected, rel=0.02) and theta[0] == pytest.approx(scores.mean())


def test_resamples_without_a_value_are_left_out() -> None:
    values = np.full((101, 2), 0.5)
    values[7] = np.nan
    assert interval(values, np.ones((101, 2)), 0.95) == Interval(0.5, 0.5, 0.5)


def simulated(truth: float, repeats: int, r: np.random.Generator, n_seeds: int = 5) -> list[Interval]:
    """Intervals of the gain of one arm over another: 40 groups of 3 images, seeds and groups both spread."""
    out = []
    groups = np.repeat(np.arange(40), 3)
    targets = np.arange(40).repeat(3) % 2
    for i in range(repeats):
        hard = np.repeat(r.normal(0, 0.15, 40), 3)[:, None]
        gain = truth + r.normal(0, 0.03, n_seeds) + hard + r.normal(0, 0.2, (120, n_seeds))
        made = resample(targets, groups, n_seeds=n_seeds, n=300, seed=i)
        out.append(interval(made.weights.T.astype(float) @ gain / 120, made.seeds, 0.95))
    return out


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = simulated(0.05, 300, np.random.default_rng(0))
    assert 0.91 <= np.mean([i.low <= 0.05 <= i.high for i in found]) <= 0.985


def test_equal_arms_are_rarely_called_a_gain() -> None:
    said = [verdict(i, BalancedAccuracy()) for i in simulated(0.0, 300, np.random.default_rng(1))]
    assert said.count("gain") <= 0.05 * 300 and said.count("harm") <= 0.05 * 300
    assert said.count("no_gain") >= 0.91 * 300


def test_ignoring_groups_makes_intervals_too_narrow() -> None:
    r = np.random.default_rng(0)
    targets, groups = np.zeros(400, int), np.repeat(np.arange(20), 20)
    values = np.repeat(r.normal(0, 1, 20), 20)

    def width(made: Resamples) -> float:
        found = interval(made.weights.T.astype(float) @ values[:, None] / 400, made.seeds, 0.95)
        return found.high - found.low

    whole, single = (resample(targets, g, n_seeds=1, n=1000, seed=0) for g in (groups, np.arange(400)))
    assert width(whole) > 3 * width(single)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.05, "gain"), (-0.05, -0.01, "harm"), (-0.01, 0.05, "no_gain"), (0.0, 0.0, "no_gain"), (0.0, 0.1, "no_gain")],
)
def test_the_verdict_is_the_interval(low: float, high: float, said: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), BalancedAccuracy()) == said


@pytest.mark.parametrize(
    ("counts", "share", "head", "middle", "tail"),
    [
        ([60, 43, 31, 22, 16, 11, 8, 6, 4, 3], 0.34, [0, 1, 2], [3, 4, 5, 6], [7, 8, 9]),
        ([3, 60, 20], 0.34, [1], [2], [0]),
        ([3, 60], 0.34, [1], [], [0]),
        ([5, 5, 5, 2], 0.25, [0], [1, 2], [3]),
        ([9, 9, 1, 1], 0.25, [0], [1, 2], [3]),
        ([3, 60, 20], 0.0, [1], [2], [0]),
        ([1, 2, 3], 1.0, [2], [1], [0]),
        ([7, 7, 7], 0.34, [0, 1, 2], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_strata(counts: list[int], share: float, head: list[int], middle: list[int], tail: list[int]) -> None:
    assert {name: ids.tolist() for name, ids in strata(counts, share).items()} == {"head": head, "middle": middle, "tail": tail}


def test_an_interval_is_cut_to_the_range_of_its_metric() -> None:
    assert Interval(0.2, -0.01, 1.02).within(0.0, 1.0) == Interval(0.2, 0.0, 1.0)
    assert Interval(0.2, 0.1, 0.3).within(0.0, 1.0) == Interval(0.2, 0.1, 0.3)
