"""SMOTE: points between rows of one class (Chawla et al., 2002, section 4.2).

    x = a + u (b - a),   u uniform on [0, 1]

for a row a and a row b among its k nearest of the same class, by the Euclidean distance of pixels, or of the features of the
images as they are. Each view of a point lies between the same views of a and b. A class is filled up to the largest one. Each
of its rows is used as often as the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.core.seeds import numpy_rng


class Points(NamedTuple):
    """What fills the classes."""

    images: np.ndarray  # uint8 (m, c, h, w) or float16 (m, v, d)
    rows: np.ndarray  # int64 (m,), the row a of each point


def points(images: np.ndarray, targets: np.ndarray, n_classes: int, neighbours: int, seed: int) -> Points:
    """Points of `images` uint8 (n, c, h, w) or float16 (n, v, d) with int64 `targets` (n,); `neighbours` is k at most.

    A class of one row has that row repeated, and a class without rows stays empty.
    """
    counts = np.bincount(targets, minlength=n_classes)
    made, rows = [images[:0]], [np.zeros(0, np.int64)]
    for c in np.flatnonzero((counts > 0) & (counts < counts.max(initial=0))):
        r = numpy_rng(seed, "smote", int(c))
        own = np.flatnonzero(targets == c)
        a = r.permutation(len(own))[np.arange(counts.max() - counts[c]) % len(own)]
        b = _neighbours(images[own], neighbours, a, r)
        x, y = (images[own[i]].astype(np.float32) for i in (a, b))
        between = x + r.random((len(a), *[1] * (x.ndim - 1)), np.float32) * (y - x)
        made.append((np.rint(between) if images.dtype == np.uint8 else between).astype(images.dtype))
        rows.append(own[a])
    return Points(np.concatenate(made), np.concatenate(rows))


def _neighbours(images: np.ndarray, k: int, rows: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """For each of `rows` (m,) one of its k nearest other images, evenly drawn; the row itself where there is no other."""
    from sklearn.neighbors import NearestNeighbors  # takes a second to import, and one arm alone needs it

    k = min(k, len(images) - 1)
    if k == 0:
        return rows
    still = images[:, 0] if images.ndim == 3 else images
    flat = still.reshape(len(images), -1).astype(np.float32)
    # Without a query the search leaves out each image itself, but not its copies.
    nearest = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(flat).kneighbors(return_distance=False)
    chosen: np.ndarray = nearest[rows, r.integers(k, size=len(rows))]
    return chosen
