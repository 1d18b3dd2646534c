"""Images that show the same thing: identical pixels, and near-duplicates found in time proportional to their number.

Two images are near-duplicates where their thumbnails u, v (pipeline/encoders/thumbnails.py, d pixels) differ little in the mean
and nowhere much, in levels of 255:

    |u - v|_1 / d  <=  b    and    |u - v|_max  <=  PEAK b,
    b = min(levels, RELATIVE spread),    spread = |u - mean(u)|_1 / d, of the pair the smaller one

A second encoding spreads its error evenly, while two digits "1" differ at an edge: the peak tells them apart (on MNIST,
JPEG at quality 75 reaches 31 of 255, pairs of distinct images within 2 levels in the mean start at 32). The spread keeps
apart images that are nearly blank and hence all alike.

All pairs would cost O(n^2). Instead, in each of TABLES tables, a thumbnail gets one bit for each of about log2(n / 8)
random directions (above or below the median; Charikar 2002, similarity estimation from rounding), images are sorted by
these bits and, within them, by one more projection, and each is compared with its NEIGHBOURS successors. A near pair has
equal bits in some table with a probability near one (measured: 99 % of JPEG copies among 62,000), and several copies of
one image are neighbours in a chain. Mirrored and rotated copies are not looked for.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.core import seeds

PEAK = 16
RELATIVE = 0.1
TABLES = 10
NEIGHBOURS = 4
CHUNK = 2048  # thumbnails in memory at a time; with their differences they fit into a cache


def near_pairs(thumbnails: np.ndarray, levels: float) -> np.ndarray:
    """Pairs (m, 2), i < j, of near-duplicates among uint8 thumbnails (n, d), which may be a memory map.

    Time O(n), but for sorting; memory about 100 bytes a row. `levels` is a mean difference in 1/255.
    """
    n = len(thumbnails)
    found = [np.empty((0, 2), dtype=np.int64)]
    for table in range(TABLES if n > 1 else 0):
        order = _sorted_by_bits(thumbnails, seeds.numpy_rng(0, "near-duplicates", table))
        for start in range(0, n - 1, CHUNK):
            rows = order[start : start + CHUNK + NEIGHBOURS]
            u = thumbnails[rows].astype(np.int16)
            spread = np.abs(u - u.mean(axis=1, keepdims=True).round().astype(np.int16)).mean(axis=1)
            for step in range(1, min(NEIGHBOURS, len(rows) - 1) + 1):
                bound = np.minimum(levels, RELATIVE * np.minimum(spread[step:], spread[:-step]))
                difference = np.abs(u[step:] - u[:-step])
                near = (difference.mean(axis=1) <= bound) & (difference.max(axis=1) <= PEAK * bound)
                found.append(np.stack([rows[:-step][near], rows[step:][near]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _sorted_by_bits(thumbnails: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, d = thumbnails.shape
    bits = int(np.clip(np.log2(max(n, 16) / 8), 1, 24))
    directions = rng.standard_normal((d, bits + 1)).astype(np.float32)
    directions -= directions.mean(axis=0)  # brightness alone tells little
    projected = np.empty((n, bits + 1), dtype=np.float32)
    for start in range(0, n, CHUNK):
        projected[start : start + CHUNK] = thumbnails[start : start + CHUNK].astype(np.float32) @ directions
    codes = np.zeros(n, dtype=np.int32)
    for column in projected[:, :bits].T:
        codes = (codes << 1) | (column > np.median(column))
    return np.lexsort((projected[:, bits], codes))


def equal_pairs(codes: np.ndarray) -> np.ndarray:
    """Pairs (m, 2) that join rows of equal code, each row with the one before it."""
    order = np.argsort(codes, kind="stable")
    same = codes[order][1:] == codes[order][:-1]
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def components(n: int, *pairs: np.ndarray) -> np.ndarray:
    """Connected components of n rows under pairs (m, 2): int64 (n,), each row's value the first row of its component."""
    edges = np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs])
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(n, n))
    labels = connected_components(graph, directed=False)[1]
    first = np.full(labels.max(initial=-1) + 1, n, dtype=np.int64)
    np.minimum.at(first, labels, np.arange(n))
    return first[labels]
