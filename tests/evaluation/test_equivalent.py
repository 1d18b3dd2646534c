"""Equivalent real images on curves where the answer is known, and the parts of a gain."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.digits_project import params
from pipeline.arms import recipes
from pipeline.config import SELF_DISTILLATION
from pipeline.evaluation import equivalent
from pipeline.evaluation.intervals import interval, resample, resampled
from pipeline.evaluation.verdict import verdict
from pipeline.metrics.standard import BalancedAccuracy

EXTRA = [0, 10, 100]


def one(curve: list[float], score: float, extra: list[int] = EXTRA) -> tuple[float, bool]:
    m, beyond = equivalent.reached(extra, np.array([curve]), np.array([score]))
    return float(m[0]), bool(beyond[0])


def test_isotonic_regression_is_that_of_sklearn() -> None:
    from sklearn.isotonic import IsotonicRegression

    values = np.random.default_rng(0).normal(0, 1, (200, 6)) + np.linspace(0, 2, 6)
    expected = [IsotonicRegression().fit_transform(np.arange(6), row) for row in values]
    np.testing.assert_allclose(equivalent.non_decreasing(values), expected, atol=1e-12)


def test_on_a_line_the_worth_is_the_slope_s() -> None:
    line = [0.5 + 0.001 * m for m in EXTRA]
    for m in (0.5, 10.0, 50.0, 99.0):
        assert one(line, 0.5 + 0.001 * m) == (pytest.approx(m), False)
    assert one([0.5, 0.6, 0.64], 0.62) == (pytest.approx(55.0), False)  # of two pieces the second


def test_what_is_not_above_the_real_arm_is_worth_nothing_and_what_is_above_all_more_than_the_last() -> None:
    assert one([0.5, 0.6, 0.7], 0.5) == (0.0, False)
    assert one([0.5, 0.6, 0.7], 0.3) == (0.0, False)
    assert one([0.5, 0.6, 0.7], 0.71) == (100.0, True)
    assert one([0.5, 0.4, 0.3], 0.5) == (0.0, False)  # above the pooled curve, not above what was measured
    assert one([0.5, 0.4, 0.3], 0.51) == (100.0, True)


def test_a_dip_is_pooled_and_not_carried_along_by_a_maximum() -> None:
    # 0.64 and 0.56 become 0.60 twice: 0.60 is reached at 10, and 0.62 between 100 and 200 of 0.60 ... 0.70.
    dip, extra = [0.5, 0.64, 0.56, 0.7], [0, 10, 100, 200]
    assert one(dip, 0.6, extra) == (pytest.approx(10.0), False)
    assert one(dip, 0.62, extra) == (pytest.approx(120.0), False)  # a running maximum says 8.6


def draws(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A noisy score (R + 1, 5) that all runs share, and how often each seed is drawn."""
    r = np.random.default_rng(0)
    made = resample(np.zeros(60, int), np.arange(60), n_seeds=5, n=n, seed=0)
    right = r.random((60, 5)) < 0.8
    return made.weights.T @ right / 60.0, made.seeds


def found(shifts: list[float], of_synthetic: np.ndarray | float, confidence: float = 0.95, added: tuple[int, ...] = (100, 100)):
    shared, seeds = draws()
    line = np.stack([resampled(shared + shift, seeds, confidence) for shift in shifts], 1)
    scores = resampled(shared + of_synthetic, seeds, confidence)
    return equivalent.in_real_images(EXTRA, np.array(added), line, scores, confidence)


def test_the_interval_is_paired_within_resamples() -> None:
    """All noise is shared: each resample says the same number, though the scores themselves spread over points."""
    shared, seeds = draws()
    spread = interval(shared, seeds, 0.95)
    assert spread.high - spread.low > 0.1
    said = found([0.0, 0.01, 0.1], 0.05)
    assert (said["real_images_per_class"], said["low"], said["high"]) == (50.0, 50.0, 50.0)
    assert not said["beyond"] and not said["high_beyond"] and said["real_images"] == 100.0


def test_the_total_counts_what_the_reserve_holds() -> None:
    assert found([0.0, 0.01, 0.1], 0.05, added=(100, 7, 0))["real_images"] == 57.0


def test_beyond_the_curve_the_end_is_open() -> None:
    said = found([0.0, 0.01, 0.02], 0.05)
    assert (said["real_images_per_class"], said["beyond"], said["low_beyond"], said["high_beyond"]) == (100.0, True, True, True)
    noise = np.random.default_rng(1).normal(0, 0.004, (401, 5))
    some = found([0.0, 0.01, 0.05], 0.049 + noise)
    assert some["low"] < some["high"] == 100.0 and some["high_beyond"] and not some["low_beyond"]


@pytest.mark.parametrize("shift", [-0.02, 0.0, 0.01, 0.02, 0.03])
def test_the_interval_lies_above_zero_where_the_gain_s_does(shift: float) -> None:
    noise = np.random.default_rng(2).normal(0, 0.01, (401, 5))
    _, seeds = draws()
    gain = interval(shift + noise, seeds, 0.95)
    said = found([0.0, 0.05, 0.1], shift + noise)
    assert (said["low"] > 0) == (verdict(gain, BalancedAccuracy()) == "gain")
    assert (said["real_images_per_class"] > 0) == (gain.estimate > 0)


def test_resampled_scores_are_linear_and_those_of_the_interval() -> None:
    shared, seeds = draws()
    other = np.random.default_rng(3).random(shared.shape)
    a, b, both = (resampled(v, seeds, 0.9) for v in (shared, other, shared - 2 * other))
    np.testing.assert_allclose(both, a - 2 * b, atol=1e-12)
    whole = interval(shared, seeds, 0.9)
    np.testing.assert_allclose([a[0], *np.quantile(a[1:], [0.05, 0.95])], [whole.estimate, whole.low, whole.high], atol=1e-6)


KNOWN = recipes(params().classifier)


@pytest.mark.parametrize(
    ("arms", "best", "pair"),
    [
        (
            {"real": 0.5, "logit_adjustment": 0.9, "augment": 0.6, "augment+logit_adjustment": 0.7},
            "augment+logit_adjustment",
            ("augment+logit_adjustment", "augment"),
        ),
        # Without an offset in the best arm: the best one with the same treatment and an offset.
        (
            {"augment": 0.8, "augment+logit_adjustment": 0.6, "augment+logit_adjustment_strong": 0.7},
            "augment",
            ("augment+logit_adjustment_strong", "augment"),
        ),
        # A best arm that has no such partner: the pair whose arm with an offset is best.
        ({"real": 0.5, "logit_adjustment": 0.6, "crt": 0.9}, "crt", ("logit_adjustment", "real")),
        ({"real": 0.5, "augment+logit_adjustment": 0.9}, "augment+logit_adjustment", None),
    ],
)
def test_the_prior_s_part_is_that_of_one_recipe_with_and_without_an_offset(
    arms: dict[str, float], best: str, pair: tuple[str, str] | None
) -> None:
    said = equivalent.parts(arms, best, best, KNOWN, BalancedAccuracy())
    assert said.get("prior_shift") == pair
    assert said["regularisation"] == ("replay", best) and said["new_content"] == ("synthetic", "replay")
    # Above all of them the student of the best: the prior's part is its teacher's.
    taught = equivalent.parts({**arms, SELF_DISTILLATION: 1.0}, SELF_DISTILLATION, best, KNOWN, BalancedAccuracy())
    assert taught.get("prior_shift") == pair and taught["regularisation"] == ("replay", SELF_DISTILLATION)
