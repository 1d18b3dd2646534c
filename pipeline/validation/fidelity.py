"""Fidelity and diversity: how near synthetic images are to real ones that nothing was fitted on.

Real rows X and synthetic rows Y, embedded by the judges (standardised, concatenated over K, dimension d):

    kid         unbiased MMD^2 with k(x, y) = (x . y / d + 1)^3 (Binkowski et al., 2018, eq. 4); 0 for equal distributions
    mmd         the same with k(x, y) = exp(-|x - y|^2 / m), m the median of |x - y|^2 (Gretton et al., 2012, eq. 3)
    frechet     |mu_X - mu_Y|^2 + tr(S_X + S_Y - 2 (S_X S_Y)^1/2), S covariances (Heusel et al., 2017, eq. 6); 0 for equal ones
    sliced_wasserstein
                mean over random directions u of the 1-Wasserstein distance of u . X and u . Y (Bonneel et al., 2015)
    precision   share of Y inside a ball around some x, radius to its k-th neighbour in X (Kynkaanniemi et al., 2019, eq. 1-3)
    recall      share of X inside such a ball around some y
    density     mean number of balls of X around a y, over k (Naeem et al., 2020, eq. 4); 1 if they are equal, unbounded
    coverage    share of balls of X that hold some y (Naeem et al., 2020, eq. 5); 1 - 2^-k about, for equal distributions
    c2st        classifier two-sample test: cross-validated accuracy of a logistic regression that tells X from Y (Lopez-Paz &
                Oquab, 2017); 0.5 is indistinguishable, 1 is told apart always

X are *validation* rows: measurement alone, nothing is fitted, chosen or calibrated here. As many rows of each class are
drawn from X as from Y, so that another mix of classes is not mistaken for bad images. KID's subset is the whole of these
rows up to 1,000, so it fits small n.

The Frechet and the sliced Wasserstein distance of two samples are above that of their distributions, the more the fewer rows:
they compare families on the same rows, and have no interval, since a resample is further off still.

Intervals are 95 % percentile bootstraps. KID and MMD reweight the pairs with multinomial counts and leave out pairs of a row
with itself, so that a resample is unbiased too. The others resample rows with the balls, or the classifiers, held fixed: their
intervals speak of the rows at hand and not of those that defined the balls.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.core.seeds import derive, numpy_rng

METRICS = ("kid", "mmd", "frechet", "sliced_wasserstein", "precision", "recall", "density", "coverage", "c2st")
SUBSET = 1000  # rows a side
NEEDED = 100  # rows a side from which a share has a standard error of at most 0.05
DIRECTIONS = 128  # of the sliced Wasserstein distance
TAIL = 2.5  # percent on each side of an interval


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval, None where it cannot be computed; `warning` says why not to rely on it."""

    estimate: float | None
    low: float | None
    high: float | None
    warning: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(
    real: np.ndarray,
    real_targets: np.ndarray,
    synthetic: np.ndarray,
    synthetic_targets: np.ndarray,
    *,
    neighbours: int,
    bootstrap: int,
    seed: int,
) -> dict[str, Estimate]:
    """Every metric of METRICS for embeddings (n, d) and (m, d) with classes (n,) and (m,), on class-matched subsets."""
    chance = numpy_rng(seed, "fidelity")
    x, y = (part.astype(np.float64) for part in _matched(real, real_targets, synthetic, synthetic_targets, chance))
    n = len(x)
    if n < max(2 * neighbours, 10):
        why = f"{n} matched rows a side, at least {max(2 * neighbours, 10)} needed to compute it and {NEEDED} to rely on it"
        return {name: Estimate(None, None, None, why) for name in METRICS}
    why_not = None if n >= NEEDED else f"{n} matched rows a side, {NEEDED} needed: the interval is wide and the estimate unsure"
    found = {name: _interval(*kernel(x, y, bootstrap, chance), why_not) for name, kernel in (("kid", kid), ("mmd", mmd))}
    above = f"{n} rows in {x.shape[1]} dimensions: above the distance of the distributions; compare on the same rows alone"
    found["frechet"] = Estimate(frechet(x, y), None, None, above if n < 10 * x.shape[1] else why_not)
    found["sliced_wasserstein"] = Estimate(sliced_wasserstein(x, y, chance), None, None, why_not)
    for name, values in prdc(x, y, neighbours).items():
        found[name] = share(values, bootstrap, chance, why_not)
    found["c2st"] = share(two_sample(x, y, derive(seed, "c2st")), bootstrap, chance, why_not)
    return found


def kid(x: np.ndarray, y: np.ndarray, bootstrap: int, chance: np.random.Generator) -> tuple[float, np.ndarray]:
    """Unbiased MMD^2 of rows (n, d) and (m, d) with the cubic kernel, and `bootstrap` resamples of it."""
    d = x.shape[1]
    return _discrepancy([(a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))], bootstrap, chance)


def mmd(x: np.ndarray, y: np.ndarray, bootstrap: int, chance: np.random.Generator) -> tuple[float, np.ndarray]:
    """Unbiased MMD^2 of rows (n, d) and (m, d) with the Gaussian kernel, and `bootstrap` resamples of it."""
    squared = [_distances(a, b) ** 2 for a, b in ((x, x), (y, y), (x, y))]
    median = max(float(np.median(squared[2])), 1e-12)
    return _discrepancy([np.exp(-s / median) for s in squared], bootstrap, chance)


def _discrepancy(kernels: list[np.ndarray], bootstrap: int, chance: np.random.Generator) -> tuple[float, np.ndarray]:
    """Unbiased MMD^2 from kernel matrices (n, n), (m, m), (n, m), and `bootstrap` resamples of it (b,)."""
    xx, yy, xy = kernels
    np.fill_diagonal(xx, 0.0)
    np.fill_diagonal(yy, 0.0)

    def statistic(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """MMD^2 (b,) under weights of rows (b, n) and (b, m)."""

        def within(w: np.ndarray, k: np.ndarray) -> np.ndarray:
            return np.asarray(((w @ k) * w).sum(1) / (w.sum(1) ** 2 - (w**2).sum(1)))

        between = ((u @ xy) * v).sum(1) / (u.sum(1) * v.sum(1))
        return np.asarray(within(u, xx) + within(v, yy) - 2 * between)

    draws = [chance.multinomial(n, np.full(n, 1 / n), bootstrap).astype(np.float64) for n in xy.shape]
    whole = statistic(*(np.ones((1, n)) for n in xy.shape))
    return float(whole[0]), statistic(*draws)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of the Gaussians with the means and covariances of rows (n, d) and (m, d)."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x) / np.sqrt(len(x) - 1), (y - mean_y) / np.sqrt(len(y) - 1)
    # S_X = a^T a and S_Y = b^T b, so tr (S_X S_Y)^1/2 is the sum of the singular values of a b^T, or of their triangular
    # factors: no root of a matrix that few rows leave singular.
    left, right = (np.asarray(np.linalg.qr(side, mode="r")) for side in (a, b))
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(max(0.0, ((mean_x - mean_y) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross))


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, chance: np.random.Generator) -> float:
    """Sliced 1-Wasserstein distance of as many rows (n, d) as (n, d)."""
    u = chance.standard_normal((x.shape[1], DIRECTIONS))
    u /= np.linalg.norm(u, axis=0)
    return float(np.abs(np.sort(x @ u, axis=0) - np.sort(y @ u, axis=0)).mean())


def prdc(x: np.ndarray, y: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """What precision (m,), recall (n,), density (m,), coverage (n,) are the means of; real x (n, d), synthetic y (m, d)."""
    between = _distances(x, y)
    radius_x, radius_y = (np.partition(_distances(a, a), k, axis=1)[:, k] for a in (x, y))  # column 0 is the row itself
    inside = between <= radius_x[:, None]
    return {
        "precision": inside.any(0).astype(np.float64),
        "recall": (between <= radius_y[None, :]).any(1).astype(np.float64),
        "density": inside.sum(0) / k,
        "coverage": (between.min(1) <= radius_x).astype(np.float64),
    }


def two_sample(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """1 where a classifier that has not seen the row tells its origin, else 0, (n + m,); five folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = np.concatenate([x, y])
    origin = np.repeat([0, 1], [len(x), len(y)])
    rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-9)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed % 2**32)
    said = cross_val_predict(LogisticRegression(C=0.1, max_iter=2000), rows, origin, cv=folds)
    return np.asarray(said == origin, dtype=np.float64)


def share(values: np.ndarray, bootstrap: int, chance: np.random.Generator, warning: str | None = None) -> Estimate:
    """The mean of values (n,) with its bootstrap interval."""
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, f"no rows, {NEEDED} needed")
    weights = chance.multinomial(n, np.full(n, 1 / n), bootstrap)
    return _interval(float(values.mean()), weights @ values / n, warning)


def _matched(
    x: np.ndarray, x_targets: np.ndarray, y: np.ndarray, y_targets: np.ndarray, chance: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As many rows of each class from both, SUBSET a side at most, classes cut in proportion."""
    pairs = []
    for c in np.intersect1d(x_targets, y_targets):
        rows = [chance.permutation(np.flatnonzero(t == c)) for t in (x_targets, y_targets)]
        pairs += list(zip(*rows, strict=False))
    if not pairs:
        return x[:0], y[:0]
    chosen = np.array(pairs)[chance.permutation(len(pairs))[:SUBSET]]
    return x[chosen[:, 0]], y[chosen[:, 1]]


def _interval(estimate: float, samples: np.ndarray, warning: str | None) -> Estimate:
    low, high = np.percentile(samples, [TAIL, 100 - TAIL])
    return Estimate(estimate, float(low), float(high), warning)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    out = np.sqrt(np.maximum(squared, 0.0))
    if a is b:
        np.fill_diagonal(out, 0.0)
    return np.asarray(out)
