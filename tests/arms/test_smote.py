"""Points between rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.plans import arm, flat, same, scattered
from pipeline.arms import Arm, Recipe, smote

SMOTE = Recipe(neighbours=2)


@pytest.mark.parametrize("counts", [[9, 5, 3], [9, 2, 1], [12, 0, 4]])
def test_smote_fills_with_points_between_a_row_and_one_of_its_nearest_of_the_class(counts: list[int]) -> None:
    data = scattered(counts)
    plan = Arm("smote", SMOTE).build(data, seed=1)
    n = sum(counts)
    assert torch.bincount(plan.targets, minlength=3).tolist() == [max(counts) if c else 0 for c in counts]
    assert torch.equal(plan.images[:n], torch.from_numpy(data.images))
    for point, c in zip(flat(plan.images[n:]), plan.targets[n:].tolist(), strict=True):
        own = flat(plan.images[:n])[data.targets == c]
        if len(own) == 1:
            np.testing.assert_array_equal(point, own[0])
            continue
        distances = np.linalg.norm(own[:, None] - own, axis=-1)
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argsort(1)[:, : min(2, len(own) - 1)]
        off = []  # of each segment between a row and a neighbour
        for a, others in zip(own, nearest, strict=True):
            for b in own[others]:
                u = np.clip((point - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
                off.append(np.abs(point - (a + u * (b - a))).max())
        assert min(off) < 1.5  # the point is rounded, and u found from it


def test_smote_uses_each_row_as_often_as_the_others_and_the_seed_decides() -> None:
    data = scattered([9, 3, 1])
    base = smote.points(data.images, data.targets, 3, 2, seed=1).rows
    assert np.bincount(base, minlength=13).tolist() == [0] * 9 + [2, 2, 2] + [8]
    plans = [Arm("smote", SMOTE).build(data, seed) for seed in (1, 1, 2)]
    assert same(plans[0], plans[1]) and not same(plans[0], plans[2])
    # Points that differ from their ends: u is not 0 or 1 alone.
    assert len(np.unique(flat(plans[0].images[13:19]), axis=0)) == 6


def test_smote_makes_points_between_real_rows_and_they_count_as_such() -> None:
    data = scattered([8, 3, 1], (0, 2, 5))
    plan = arm("synthetic", SMOTE, 0.5).build(data, 0)
    assert torch.bincount(plan.targets).tolist() == [8, 8 + 2, 8 + 5]
    assert torch.equal(plan.targets[:24].bincount(), torch.tensor([8, 8, 8]))  # added rows stand last
    np.testing.assert_allclose(torch.bincount(plan.targets[:24], plan.draw[:24]).numpy(), [1 / 6] * 3)
    np.testing.assert_allclose(torch.bincount(plan.targets[24:], plan.draw[24:]).numpy(), [0, 1 / 4, 1 / 4])
    real = flat(plan.images[8:11])
    low, high = real.min(0), real.max(0)
    assert all(((low <= point) & (point <= high)).all() for point in flat(plan.images[12:17]))
