"""Drift: have the images of a class changed since the generators were fitted on it?

    F_c     train rows of class c that the generators were fitted on, the reference
    N_c     train rows of class c that came since
    z       features of an image, of an encoder that none of these rows has shaped: neither side is favoured
    u       the mean of z over the rows of one group on one side, the unit of the test: images of one object are no
            independent witnesses

    T_c = n m / (n + m) * ||mu_F - mu_N||^2 = n m / (n + m) * w^T K w,    w_i = 1/n on F_c, -1/m on N_c    (n, m units)

the squared maximum mean discrepancy (Gretton et al., 2012, eq. 5) with K_ij = exp(-|u_i - u_j|^2 / median), or the energy
distance, which is the same with K_ij = -|u_i - u_j| / median (Szekely & Rizzo, 2004; Sejdinovic et al., 2013). Scales and
medians are of both sides together. Where a class did not change, which of its units came is a relabelling like any other:

    p = (1 + #{T* >= T}) / (1 + B)       over B random relabellings T* (Phipson & Smyth, 2010, eq. 2), valid for any n and m
    together: T = sum_c T_c, relabelled within the classes; small changes in every class, of which no class alone is sure
    adjusted: Holm (1979), over the classes to which images came, and `together`: one false alarm a version with probability
              alpha at most, however many classes there are

A generator is re-used where nothing says otherwise. It is fitted anew where a class is new or has vanished, where a row that it
was fitted on is no longer a train row as it was or has another region, where images changed, and where of a class so many came
as params.yaml says.
The second of these is the guard against leaks: what has been re-used saw rows of today's train alone, and `prepare` lets no
component of groups and near-duplicates stand on two sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import Drift
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import numpy_rng
from pipeline.encoders import store
from pipeline.encoders.base import Encoder

UNITS = 1000  # of a class and side; more are drawn from
DRAWS = 1024  # relabellings in memory at a time


@dataclass(frozen=True)
class Sample:
    """Units of one class: features (u, d) float64, and whether each came since (u,) bool. Both kinds are there."""

    units: np.ndarray
    came: np.ndarray


@dataclass(frozen=True)
class Test:
    """A statistic, its p-value in (0, 1], and that adjusted for the number of tests."""

    statistic: float
    p: float
    adjusted: float = math.nan


def units(z: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (u, d) of features (n, d) over the groups (n,), UNITS at most."""
    _, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(index.max(initial=-1)) + 1, z.shape[1]))
    np.add.at(sums, index, z)
    means = sums / np.bincount(index, minlength=len(sums))[:, None]
    return means if len(means) <= UNITS else means[np.sort(rng.permutation(len(means))[:UNITS])]


def two_sample(samples: Sequence[Sample], kind: str, draws: int, rng: np.random.Generator) -> tuple[list[Test], Test | None]:
    """(a test for each sample, one of all together where there are several), adjusted among all of them.

    `kind` is mmd or energy, `draws` the number B of relabellings.
    """
    tests, whole, relabelled = list[Test](), 0.0, np.zeros(draws)
    for sample in samples:
        kernel, n, m = _kernel(sample.units, kind), int((~sample.came).sum()), int(sample.came.sum())
        weights = np.where(sample.came, -1 / m, 1 / n)
        observed, own = float(_statistics(kernel, weights[None])[0]) * n * m / (n + m), np.empty(draws)
        for start in range(0, draws, DRAWS):
            part = own[start : start + DRAWS]
            part[:] = _statistics(kernel, rng.permuted(np.tile(weights, (len(part), 1)), axis=1)) * n * m / (n + m)
        tests.append(_tested(observed, own))
        whole, relabelled = whole + observed, relabelled + own
    together = [_tested(whole, relabelled)] if len(samples) > 1 else []
    adjusted = [
        Test(test.statistic, test.p, p) for test, p in zip(tests + together, holm([t.p for t in tests + together]), strict=True)
    ]
    return adjusted[: len(samples)], adjusted[-1] if together else None


def _kernel(x: np.ndarray, kind: str) -> np.ndarray:
    """Kernel matrix (u, u) of units (u, d), each feature in units of its standard deviation."""
    spread = x.std(0)
    x = (x - x.mean(0))[:, spread > 1e-9] / spread[spread > 1e-9]
    squared = np.maximum((x * x).sum(1)[:, None] + (x * x).sum(1) - 2 * (x @ x.T), 0.0)
    np.fill_diagonal(squared, 0.0)
    pairs = squared[np.triu_indices(len(x), 1)]
    if kind == "mmd":
        return np.asarray(np.exp(-squared / max(float(np.median(pairs)), 1e-12)))
    return np.asarray(-np.sqrt(squared / max(float(np.median(pairs)), 1e-12)))


def _statistics(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w^T K w (b,) of weights (b, u)."""
    return np.asarray(((weights @ kernel) * weights).sum(1))


def _tested(observed: float, relabelled: np.ndarray) -> Test:
    # A relabelling that swaps equal units has the same statistic, but for rounding: it counts.
    least = observed - 1e-9 * max(1.0, abs(observed))
    return Test(observed, float((1 + (relabelled >= least).sum()) / (1 + len(relabelled))))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (m,): the i-th smallest times m - i + 1, made non-decreasing and cut at 1 (Holm, 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(scaled, 1.0)
    return [float(value) for value in adjusted]


def mix(before: np.ndarray, came: np.ndarray, draws: int, rng: np.random.Generator) -> float | None:
    """p-value of Pearson's chi-square that rows which came are of the classes in the same shares as those before.

    `before` and `came` (k,) count rows. Over random tables with the same margins, so valid for small counts; None where
    nothing can be compared.
    """
    from scipy.stats import random_table

    table = np.stack([before, came])[:, before + came > 0].astype(np.int64)
    if not before.sum() or not came.sum() or table.shape[1] < 2:
        return None
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    drawn = random_table(table.sum(1), table.sum(0)).rvs(draws, random_state=rng)
    return _tested(float(((table - expected) ** 2 / expected).sum()), ((drawn - expected) ** 2 / expected).sum((1, 2))).p


def _identities(rows: Manifest) -> list[tuple[str, str, str]]:
    return list(zip(*(rows.column(name).tolist() for name in ("sample_id", "label", "pixel_hash")), strict=True))


def compare(reference: Prepared, present: Prepared, settings: Drift, seed: int, encoder: Encoder) -> dict[str, Any]:
    """What changed in train from `reference` to `present`, as drift.json has it.

    `decision` is same (no train row came or went), reuse or retrain, for the `reasons`, each {"why", "class"?, "value"?}.
    Counts are rows. Tests are there for classes that have rows on both sides, as long as images have the same form, that for
    which `encoder` is made.
    """
    old, new = reference.train(), present.train()
    old_rows, new_rows = _identities(old), _identities(new)
    known, still = set(old_rows), set(new_rows)
    came = np.array([row not in known for row in new_rows], dtype=bool)
    gone = np.array([row not in still for row in old_rows], dtype=bool)
    lay = dict(zip(old_rows, old.table["region"].to_pylist(), strict=True))
    lies = zip(new_rows, new.table["region"].to_pylist(), strict=True)
    moved = sum(lay[row] != region for row, region in lies if row in known)
    classes = [*reference.classes, *(c for c in present.classes if c not in reference.classes)]
    n_before, n_after, n_came = old.counts(classes), new.counts(classes), new.where(came).counts(classes)
    comparable = reference.shape == present.shape
    testable = [c for c in range(len(classes)) if comparable and n_before[c] and n_came[c]]
    draws = max(settings.permutations, math.ceil((len(testable) + 1) / settings.alpha))  # fewer could never be sure enough
    samples = _samples(old, new.where(came), [classes[c] for c in testable], seed, encoder)
    tests, together = two_sample(samples, settings.test, draws, numpy_rng(seed, "drift"))
    tested = dict(zip(testable, tests, strict=True))
    found = {
        "now": present.info["fingerprint"],
        "classes": [
            {"name": name, "before": int(n_before[c]), "after": int(n_after[c]), "came": int(n_came[c]), **_json(tested.get(c))}
            for c, name in enumerate(classes)
        ],
        "together": _json(together),
        "came": int(came.sum()),
        "gone": int(gone.sum()),
        "regions": moved,
        "new": [c for c in present.classes if c not in reference.classes],
        "vanished": [c for c in reference.classes if c not in present.classes],
        "mix": mix(n_before, n_came, settings.permutations, numpy_rng(seed, "drift", "mix")),
        "relabellings": draws,
        "settings": settings.model_dump(),
    }
    if not came.any() and not gone.any() and not moved:
        return found | {"reasons": [], "decision": "same"}
    reasons = _reasons(found, settings, comparable)
    return found | {"reasons": reasons, "decision": "retrain" if reasons else "reuse"}


def _samples(old: Manifest, came: Manifest, classes: Sequence[str], seed: int, encoder: Encoder) -> list[Sample]:
    """For each class the units of both sides."""
    made, both = [], [(rows, rows.column("label"), side) for rows, side in ((old, "before"), (came, "after"))]
    for name in classes:
        sides = []
        for rows, labels, side in both:
            own = rows.where(labels == name)
            z = store.features(own.images().numpy(), encoder).astype(np.float64)
            sides.append(units(z, own.column("group"), numpy_rng(seed, "drift", side, name)))
        made.append(Sample(np.concatenate(sides), np.repeat([False, True], [len(side) for side in sides])))
    return made


def _reasons(found: dict[str, Any], settings: Drift, comparable: bool) -> list[dict[str, Any]]:
    """Why the generators are fitted anew; none where they are re-used."""
    reasons: list[dict[str, Any]] = [{"why": "always"}] if settings.retrain == "always" else []
    reasons += [{"why": "new", "class": name} for name in found["new"]]
    reasons += [{"why": "vanished", "class": name} for name in found["vanished"]]
    if not comparable:
        reasons.append({"why": "form"})
    elif found["gone"]:
        reasons.append({"why": "gone", "value": found["gone"]})
    if found["regions"]:  # the images are the same, and an object elsewhere
        reasons.append({"why": "regions", "value": found["regions"]})
    for row in found["classes"]:
        if row["adjusted"] is not None and row["adjusted"] <= settings.alpha:
            reasons.append({"why": "drift", "class": row["name"], "value": row["adjusted"]})
    if found["together"]["adjusted"] is not None and found["together"]["adjusted"] <= settings.alpha:
        reasons.append({"why": "together", "value": found["together"]["adjusted"]})
    for row in found["classes"]:
        if row["before"] and row["came"] >= settings.least_change_of_counts * row["before"]:
            reasons.append({"why": "counts", "class": row["name"], "value": row["came"] / row["before"]})
    return reasons


def _json(test: Test | None) -> dict[str, float | None]:
    names = ("statistic", "p", "adjusted")
    return {name: None if test is None else getattr(test, name) for name in names}
