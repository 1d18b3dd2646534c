"""Distances between rows of features: |a - b| / sqrt(d). Of all pairs only a block is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 1024  # rows of a distance matrix at a time
BESIDE = 16_384  # columns of it at a time
ROUNDING = 1e-3  # below this two rows are features of the same image


class Nearest(NamedTuple):
    """Of each of n rows the distance to the nearest of others, float64 (n,), and which it is, int64 (n,)."""

    distance: np.ndarray
    row: np.ndarray


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (n, m) between rows (n, d) and (m, d)."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squared, 0.0) / a.shape[1]), dtype=np.float64)


def nearest(
    a: np.ndarray, b: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None, *, but: np.ndarray | None = None
) -> Nearest:
    """Of rows (n, d) the nearest of (m, d).

    With `groups`, of the rows (n,) and of the others (m,), a row's own group is passed over, and so is the same image. `but`
    (n,) is one more of the others that is passed over, -1 for none. The distance is infinite where nothing is left.
    """
    found = Nearest(np.full(len(a), np.inf), np.zeros(len(a), np.int64))
    for part in parts(np.arange(len(a))):
        for start in range(0, len(b), BESIDE):
            beside = slice(start, start + BESIDE)
            apart = distances(a[part], b[beside])
            if groups is not None:
                apart[(groups[0][part, None] == groups[1][None, beside]) | (apart < ROUNDING)] = np.inf
            if but is not None:
                passed = np.flatnonzero((but[part] >= start) & (but[part] < start + BESIDE))
                apart[passed, but[part][passed] - start] = np.inf
            best = apart.argmin(1)
            least = apart[np.arange(len(part)), best]
            nearer = least < found.distance[part]
            found.distance[part] = np.where(nearer, least, found.distance[part])
            found.row[part] = np.where(nearer, start + best, found.row[part])
    return found


def parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in blocks of CHUNK."""
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
