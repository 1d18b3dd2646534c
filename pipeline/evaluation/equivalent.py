"""What synthetic images are worth: in real ones, and in parts.

**In real images.** f(m) is the score of the best real-only arm on the train rows and m more real images of each class, known
at m_0 = 0 < m_1 < … < m_K. The images are worth the first m at which f, linear between these points, reaches the score of
`synthetic`: 0 where `synthetic` is not above f(0), and more than m_K where it is above all of f.

Scores of a few runs go up and down, while more images do no harm in truth: f is first made non-decreasing by isotonic
regression (Barlow et al., 1972), the non-decreasing values nearest to those measured. A running maximum would carry the
luckiest point on to all later ones, so that f were too high and the worth too low.

All of this is done within each resample of pipeline.evaluation.intervals, with the same draws of seeds and groups for every
run, so that the interval of the worth lies above 0 where that of `synthetic` minus f(0) does. Where m_K is passed it stands for
a worth that is larger: the end of the interval is open then.

**In parts.** Differences of two arms each, paired:

    prior_shift      a recipe with a logit offset minus the same without: what moving decisions towards rare classes gives alone
    regularisation   `replay` minus the best real-only arm: what the synthetic fraction and the labels give with no new image
    new_content      `synthetic` minus `replay`: what only new images give

The last two add up to `synthetic` minus the best real-only arm. The first is no part of that difference, since added rows shift
no prior (pipeline.arms); it is there to compare with, and is measured on the best recipe where both of its arms were
trained, else on the pair whose arm with an offset is best on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.arms import Recipe

ARM = "synthetic"


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
    """What metrics.json says of the worth, but for the points of the curve.

    `curve` (R + 1, K) at `extra` (K,) and `scores` (R + 1,) of `synthetic` are as intervals.resampled gives them; `added` (k,)
    is how many images of each class the last point has more than the first.
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


def parts(validation: Mapping[str, float], best: str, teacher: str, known: Mapping[str, Recipe]) -> dict[str, tuple[str, str]]:
    """(arm, arm that it is compared with) by the name of the part. `validation` has the mean of each real-only arm.

    `best` is the best of these arms, `teacher` the best of those that are recipes by themselves, which are in
    `known`. Without a pair of arms that differ in the offset alone there is no prior_shift.
    """

    def plain(arm: str) -> Recipe:
        return replace(known[arm], tau=0.0)

    trained = [arm for arm in validation if arm in known]
    pairs = [(a, b) for a in trained for b in trained if known[a].tau > 0 and known[b] == plain(a)]
    own = [pair for pair in pairs if plain(pair[0]) == plain(teacher)]
    shift = max(own or pairs, key=lambda pair: validation[pair[0]], default=None)
    return {
        **({"prior_shift": shift} if shift else {}),
        "regularisation": ("replay", best),
        "new_content": (ARM, "replay"),
    }
