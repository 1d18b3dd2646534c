"""Distances between rows of features, a block at a time: |a - b| / sqrt(d)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 1024  # rows of a distance matrix at a time
ROUNDING = 1e-3  # below this two rows are features of the same image


class Nearest(NamedTuple):
    """Of each of n rows the distance to the nearest of others, float64 (n,), and which it is, int64 (n,)."""

    distance: np.ndarray
    row: np.ndarray


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (n, m) between rows (n, d) and (m, d)."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squared, 0.0) / a.shape[1]), dtype=np.float64)


def nearest(a: np.ndarray, b: np.ndarray, own: np.ndarray | None = None) -> Nearest:
    """Of rows (n, d) the nearest of (m, d). `own` (n, m) marks those to pass over; then the same image is passed over too.

    The distance is infinite where nothing is left.
    """
    found = Nearest(np.full(len(a), np.inf), np.zeros(len(a), np.int64))
    for part in parts(np.arange(len(a))):
        apart = distances(a[part], b)
        if own is not None:
            apart[own[part] | (apart < ROUNDING)] = np.inf
        found.row[part] = apart.argmin(1)
        found.distance[part] = apart[np.arange(len(part)), found.row[part]]
    return found


def parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in blocks of CHUNK."""
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
