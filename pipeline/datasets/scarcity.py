"""Scarcity: how many train images of each class are kept, and which.

as_is       all
long_tail   n_c = int(largest * ratio^(-c / (k - 1))) for class c of k in their order (Cui et al. 2019, eq. of section 5)
counts      as given
ids         the listed ids
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import Scarcity
from pipeline.core import seeds
from pipeline.errors import DataError


def wanted(scarcity: Scarcity, classes: Sequence[str], available: np.ndarray) -> np.ndarray:
    """Train images to keep of each class (k,) for long_tail and counts, possibly more than `available` (k,).

    Raises DataError for a class that is unknown or left without an image.
    """
    if scarcity.kind == "long_tail":
        exponent = np.arange(len(classes)) / max(len(classes) - 1, 1)
        # 1e-9: the last class of 60 ... 3 is int(3.0), even if the power falls just below 3.
        counts = (scarcity.largest * scarcity.ratio**-exponent + 1e-9).astype(np.int64)
        remedy = "raise scarcity.largest or lower scarcity.ratio"
    else:
        if unknown := sorted(set(scarcity.counts) - set(classes)):
            raise DataError(
                f"scarcity.counts names class {unknown[0]!r}",
                expected=f"one of {', '.join(classes)}",
                remedy="correct params.yaml",
            )
        counts = np.array([scarcity.counts.get(c, have) for c, have in zip(classes, available.tolist(), strict=True)])
        remedy = "raise its count"
    if not counts.all():
        name = classes[int(np.argmin(counts))]
        raise DataError(
            f"scarcity.{scarcity.kind} leaves no train image of class {name!r}", expected="at least 1", remedy=remedy
        )
    return counts


def choose(labels: np.ndarray, classes: Sequence[str], counts: np.ndarray, seed: int, first: np.ndarray) -> np.ndarray:
    """Rows to keep, bool (n,): `counts` (k,) of each class, drawn without replacement, or all if there are fewer.

    Rows where `first` (n,) holds are drawn before the others.
    """
    kept = np.zeros(len(labels), dtype=bool)
    for c, (name, count) in enumerate(zip(classes, counts.tolist(), strict=True)):
        rows = np.flatnonzero(labels == c)
        drawn = seeds.numpy_rng(seed, "scarcity", name).permutation(rows)
        kept[drawn[np.argsort(~first[drawn], kind="stable")][:count]] = True
    return kept
