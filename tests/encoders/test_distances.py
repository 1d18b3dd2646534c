"""Nearest rows, a block of pairs at a time."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.encoders import distances
from pipeline.encoders.distances import nearest


def rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32)


def test_blocks_find_what_all_pairs_show(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = rows(23, 0), rows(31, 1)
    apart = np.linalg.norm(a[:, None] - b[None], axis=2) / np.sqrt(5)
    monkeypatch.setattr(distances, "CHUNK", 7)
    monkeypatch.setattr(distances, "BESIDE", 4)
    found = nearest(a, b)
    np.testing.assert_array_equal(found.row, apart.argmin(1))
    np.testing.assert_allclose(found.distance, apart.min(1), rtol=1e-4)


def test_a_rows_own_group_and_the_same_image_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.concatenate([rows(6, 0), rows(1, 0)])  # the last one is the first again, in a group of its own
    group = np.array([0, 0, 1, 1, 2, 2, 3])
    monkeypatch.setattr(distances, "BESIDE", 2)
    apart = np.linalg.norm(a[:, None] - a[None], axis=2) / np.sqrt(5)
    apart[(group[:, None] == group[None]) | (apart < distances.ROUNDING)] = np.inf
    found = nearest(a, a, (group, group))
    np.testing.assert_array_equal(found.row, apart.argmin(1))
    assert np.isinf(nearest(a[:2], a[:2], (group[:2], group[:2])).distance).all()
