"""Sides partition the rows, groups stay whole, classes keep their share."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.split import across, carve, remain, targets

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=1, max_size=120)


def cut(labels: np.ndarray, groups: np.ndarray, share: float, *, last: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    counts = np.bincount(labels, minlength=4)
    last = np.zeros(len(labels), dtype=bool) if last is None else last
    return carve(labels, groups, targets(counts, share), remain(counts, 1), np.random.default_rng(seed), last)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.floats(0.05, 0.9), st.integers(0, 5))
def test_no_group_is_cut_and_every_class_keeps_an_image(rows, share, seed):
    labels, groups = np.array(rows, dtype=np.int64).T
    taken = cut(labels, groups, share, seed=seed)
    assert not set(groups[taken]) & set(groups[~taken])
    left = np.bincount(labels[~taken], minlength=4)
    assert (left[np.bincount(labels, minlength=4) > 0] >= 1).all()


def test_singles_give_exact_shares():
    labels = np.repeat(np.arange(4), [100, 40, 20, 7])
    taken = cut(labels, np.arange(len(labels)), 0.25)
    assert np.bincount(labels[taken]).tolist() == [25, 10, 5, 2]


def test_small_classes_keep_two_for_train_and_one_for_val_as_far_as_they_reach():
    labels = np.repeat(np.arange(4), [5, 4, 3, 2])
    taken = cut(labels, np.arange(len(labels)), 0.9)
    assert np.bincount(labels[taken], minlength=4).tolist() == [2, 1, 1, 1]


def test_a_class_of_large_groups_still_gets_its_smallest_one():
    labels = np.zeros(30, dtype=np.int64)
    groups = np.repeat([1, 2], [16, 14])
    taken = cut(labels, groups, 0.1)
    assert set(groups[taken]) == {2}


def test_one_group_cannot_be_cut():
    assert not cut(np.zeros(9, dtype=np.int64), np.zeros(9, dtype=np.int64), 0.5).any()


def test_listed_images_are_the_last_to_be_taken():
    labels = np.zeros(40, dtype=np.int64)
    last = np.arange(40) < 30
    assert not (cut(labels, np.arange(40), 0.25, last=last) & last).any()
    assert (cut(labels, np.arange(40), 0.5, last=last) & last).sum() == 10


def test_what_stands_on_two_official_sides_leaves_the_lower_one():
    side = np.array([0, 2, 0, 1, 2, 0, 0])
    components = np.array([0, 0, 2, 2, 2, 5, 5])
    assert across(side, components).tolist() == [True, False, True, True, False, False, False]
