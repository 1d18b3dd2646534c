"""Probabilities p (S, n, k) of S seeds against classes y (n,), measured for many weightings of the images at once.

A weighting w (n,) says how often each image counts; R of them are handled together as W (n, R). Per seed and class c:

    recall             R_c = sum_i w_i [y_i = c, yhat_i = c] / sum_i w_i [y_i = c],     yhat_i = argmax_c p_ic
    F1                 2 TP_c / (predicted_c + actual_c)
    AUROC              P(p_ic > p_jc) + P(p_ic = p_jc) / 2,  i of class c, j not: one against the rest
    average precision  sum over distinct scores t of  (recall gained at t) x (precision at t)
    calibration error  sum_b |sum_{i in b} w_i ([yhat_i = y_i] - max_c p_ic)| / sum_i w_i,  BINS bins of equal mass

AUROC and average precision do not change when a class's score is shifted as a whole: they tell a better classifier from a moved
threshold. Each column of scores is sorted once; all weightings then follow from cumulative sums in that order. Bins of equal
mass (Nixon et al., 2019) are set by the unweighted rows of each seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BINS = 15
BLOCK = 1 << 19  # numbers in a block of weightings: small enough to stay in the cache


@dataclass(frozen=True)
class Ranking:
    """One column of scores, sorted upwards and cut where blocks of equal scores that hold an image of the class start and stop.

    `pieces` (j, n) sums weights (n, R) over the pieces between cuts, `positive` (b, n) over the images of the class in each
    block. Block i lies between cuts start[i] and stop[i].
    """

    pieces: csr_array
    positive: csr_array
    start: np.ndarray
    stop: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """Probabilities float64 (S, n, k) of one arm on the test rows, and their classes int64 (n,)."""

    probabilities: np.ndarray
    targets: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Classes that have test rows."""
        return np.unique(self.targets)

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 (S, n)."""
        return np.asarray(self.probabilities.argmax(2))

    @cached_property
    def bins(self) -> list[list[np.ndarray]]:
        """[seed][bin]: images in order of confidence, in equal parts."""
        return [np.array_split(np.argsort(p.max(1), kind="stable"), BINS) for p in self.probabilities]

    @cached_property
    def rankings(self) -> list[list[Ranking]]:
        """[seed][i] for class present[i]."""
        return [[_ranking(p[:, c], self.targets == c) for c in self.present] for p in self.probabilities]

    def metrics(self, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Every metric for weights uint8 (n, R).

        recall, f1, auroc, average_precision: float64 (R, S, k), NaN for a class without test rows; calibration_error (R, S).
        """
        blocks = [self._block(part) for part in _blocks(weights)]
        return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}

    def recall(self, weights: np.ndarray) -> np.ndarray:
        """Recall alone, float64 (R, S, classes present): much cheaper than `metrics`. NaN for a class that a resample lacks."""
        parts = [np.stack([_ratio(*self._hits(w, c)) for c in self.present], 2) for w in _blocks(weights)]
        return np.concatenate(parts)

    @cached_property
    def right(self) -> np.ndarray:
        """1 where the prediction is the class, else 0; float32 (S, n)."""
        return np.asarray((self.predicted == self.targets).astype(np.float32))

    def _hits(self, w: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        """Weight of the images of class c that are told right, float64 (R, S), and of all of them, (R, 1)."""
        rows = self.targets == c
        return w[rows].T @ self.right[:, rows].T, w[rows].sum(0)[:, None]

    def _block(self, w: np.ndarray) -> dict[str, np.ndarray]:
        seeds, _, k = self.probabilities.shape
        shape = (w.shape[1], seeds, k)
        out = {name: np.full(shape, np.nan) for name in ("recall", "f1", "auroc", "average_precision")}
        guesses = [w.T @ np.eye(k, dtype=np.float32)[p] for p in self.predicted]
        for i, c in enumerate(self.present):
            hits, actual = self._hits(w, c)
            out["recall"][:, :, c] = _ratio(hits, actual)
            f1 = 2 * hits / np.maximum(actual + np.stack([g[:, c] for g in guesses], 1), 1e-12)
            out["f1"][:, :, c] = np.where(actual > 0, f1, np.nan)  # as recall, of a class that a resample lacks
            for s in range(seeds):
                out["auroc"][:, s, c], out["average_precision"][:, s, c] = _areas(self.rankings[s][i], w)
        confidence = self.probabilities.max(2)
        total, error = w.sum(0), np.empty(shape[:2])
        for s in range(seeds):
            excess = self.right[s] - confidence[s]
            error[:, s] = sum(np.abs(excess[b] @ w[b]) for b in self.bins[s]) / total
        return out | {"calibration_error": error}


def _ratio(hits: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Recall; NaN where a class is absent from a resample, since it shares its groups with a rarer one."""
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / actual)


def _blocks(weights: np.ndarray) -> Iterator[np.ndarray]:
    """float32 (n, r) parts of uint8 (n, R)."""
    width = max(16, BLOCK // len(weights))
    for first in range(0, weights.shape[1], width):
        yield np.ascontiguousarray(weights[:, first : first + width], dtype=np.float32)


def _ranking(scores: np.ndarray, positive: np.ndarray) -> Ranking:
    from scipy.sparse import csr_array

    n = len(scores)
    order = np.argsort(scores, kind="stable")
    ordered, at = scores[order], np.flatnonzero(positive[order])
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    edges, block = np.append(np.flatnonzero(new), n), (np.cumsum(new) - 1)[at]
    blocks, first = np.unique(block, return_index=True)
    start, stop = edges[blocks], edges[blocks + 1]
    cuts = np.unique(np.concatenate([[0, n], start, stop]))
    pieces = csr_array((np.ones(n, np.float32), order, cuts), shape=(len(cuts) - 1, n))
    own = csr_array((np.ones(len(at), np.float32), order[at], np.append(first, len(at))), shape=(len(blocks), n))
    return Ranking(pieces, own, np.searchsorted(cuts, start), np.searchsorted(cuts, stop))


def _areas(ranking: Ranking, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(AUROC, average precision) for weights float32 (n, r), each float64 (r,); NaN where no image of the class has weight."""
    here = (ranking.positive @ w).astype(np.float64)
    below = np.zeros((ranking.pieces.shape[0] + 1, w.shape[1]))
    np.cumsum(ranking.pieces @ w, 0, out=below[1:])
    start, stop, total = below[ranking.start], below[ranking.stop], below[-1]
    before = here.cumsum(0) - here  # of the class, with lower scores
    positive = here.sum(0)
    lower, equal = start - before, stop - start - here  # not of the class
    precision = (positive - before) / np.maximum(total - start, 1e-12)
    with np.errstate(invalid="ignore"):
        auroc = (here * (lower + equal / 2)).sum(0) / (positive * (total - positive))
        return auroc, (here * precision).sum(0) / positive
