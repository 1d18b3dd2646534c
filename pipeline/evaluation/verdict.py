"""What the interval of the gain says, and which classes are called rare.

gain     the interval of the difference in the primary metric lies on the side of zero that is better
harm     it lies on the other side
no_gain  it holds zero
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.evaluation.intervals import Interval
from pipeline.metrics.base import Metric


def verdict(gain: Interval, metric: Metric) -> str:
    """gain | no_gain | harm, by the interval of an arm minus another and the direction of `metric` alone."""
    ends = metric.merit(gain.low), metric.merit(gain.high)
    if min(ends) > 0:
        return "gain"
    return "harm" if max(ends) < 0 else "no_gain"


def strata(counts: Sequence[int], share: float) -> Mapping[str, np.ndarray]:
    """Classes (indices) of head, middle and tail by their train images.

    The m = round(share k) classes of the fewest images are the tail, as many of the most the head: at least one each, at most
    half of the classes.

    Of classes with equal counts, earlier ones count as larger. Where all counts are equal nothing is rare: the three are not
    told apart, and each holds every class.
    """
    n = np.asarray(counts)
    if len(set(n.tolist())) == 1:
        return {name: np.arange(len(n)) for name in ("head", "middle", "tail")}
    order = np.argsort(-n, kind="stable")
    m = min(max(1, round(share * len(n))), len(n) // 2)
    return {"head": np.sort(order[:m]), "middle": np.sort(order[m : len(n) - m]), "tail": np.sort(order[len(n) - m :])}
