"""Counts by their closed forms; what is kept is exact."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.making import params
from pipeline.datasets.scarcity import choose, wanted
from pipeline.errors import DataError


def long_tail(largest: int, ratio: float, k: int) -> list[int]:
    settings = params(scarcity={"kind": "long_tail", "largest": largest, "ratio": float(ratio)}).scarcity
    return wanted(settings, [str(c) for c in range(k)], np.full(k, 10_000)).tolist()


def test_the_published_long_tails():
    assert long_tail(5000, 100, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tail(1000, 100, 10) == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert long_tail(400, 50, 6) == [400, 182, 83, 38, 17, 8]


def test_the_tail_of_the_demo():
    counts = long_tail(60, 20, 10)
    assert counts[0] == 60 and counts[-1] == 3 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("ratio", [20, 49, 98])
def test_the_last_class_is_the_largest_divided_by_the_ratio(ratio):
    assert [long_tail(ratio * last, ratio, 7)[-1] for last in range(1, 30)] == list(range(1, 30))


def test_a_tail_that_reaches_zero_is_refused():
    with pytest.raises(DataError, match=r"class '9'.*at least 1.*ratio"):
        long_tail(60, 100, 10)


def test_counts_leave_unnamed_classes_alone():
    settings = params(scarcity={"kind": "counts", "counts": {"b": 3}}).scarcity
    assert wanted(settings, ["a", "b"], np.array([50, 60])).tolist() == [50, 3]


@pytest.mark.parametrize(("counts", "told"), [({"x": 3}, "'x'"), ({"a": 0}, "'a'")])
def test_counts_that_do_not_fit(counts, told):
    with pytest.raises(DataError, match=told):
        wanted(params(scarcity={"kind": "counts", "counts": counts}).scarcity, ["a", "b"], np.array([5, 5]))


def test_what_is_kept_is_exact_and_a_matter_of_the_seed():
    labels = np.repeat([0, 1, 2], [100, 50, 4])
    kept = choose(labels, ["a", "b", "c"], np.array([10, 50, 9]), 0, np.zeros(len(labels), bool))
    assert np.bincount(labels[kept]).tolist() == [10, 50, 4]
    assert np.array_equal(kept, choose(labels, ["a", "b", "c"], np.array([10, 50, 9]), 0, np.zeros(len(labels), bool)))
    assert not np.array_equal(kept, choose(labels, ["a", "b", "c"], np.array([10, 50, 9]), 1, np.zeros(len(labels), bool)))
