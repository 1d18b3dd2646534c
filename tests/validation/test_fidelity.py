"""Fidelity and diversity against closed forms and values computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.validation import fidelity

Kernel = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], tuple[float, np.ndarray]]
CHANCE = np.random.default_rng(0)


def measure(x: np.ndarray, y: np.ndarray, **more: object) -> dict[str, fidelity.Estimate]:
    targets = {"real_targets": np.zeros(len(x), int), "synthetic_targets": np.zeros(len(y), int)} | more
    return fidelity.measure(x, targets["real_targets"], y, targets["synthetic_targets"], neighbours=5, bootstrap=200, seed=0)


def test_kid_by_hand() -> None:
    # d = 1, k(x, y) = (x y + 1)^3; x = {0, 1}: k(0, 1) = 1; y = {1, 2}: k(1, 2) = 27; between: k = 1, 1, 8, 27.
    estimate, _ = fidelity.kid(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]), 0, np.random.default_rng(0))
    assert estimate == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_mmd_by_hand() -> None:
    # Squared distances between {0, 1} and {1, 2} are 1, 4, 0, 1: their median is 1, and k = exp(-d^2).
    estimate, _ = fidelity.mmd(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]), 0, np.random.default_rng(0))
    assert estimate == pytest.approx(2 * np.exp(-1) - 2 * (2 * np.exp(-1) + np.exp(-4) + 1) / 4)


def test_frechet_is_that_of_gaussians() -> None:
    chance = np.random.default_rng(0)
    a, b = np.array([[1.0, 0.0], [0.5, 0.8]]), np.array([[0.6, 0.2], [0.0, 1.2]])
    x, y = chance.standard_normal((100_000, 2)) @ a.T, chance.standard_normal((100_000, 2)) @ b.T + [1.0, -2.0]
    s, t = a @ a.T, b @ b.T
    root = np.sqrt(np.linalg.eigvals(s @ t)).sum()  # the trace of (S T)^1/2
    assert fidelity.frechet(x, y) == pytest.approx(5.0 + np.trace(s + t) - 2 * root, abs=0.05)
    assert fidelity.frechet(x, x) == pytest.approx(0.0, abs=1e-9)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    x = np.random.default_rng(0).standard_normal((500, 3))
    found = fidelity.sliced_wasserstein(x, x[::-1] + np.array([3.0, 0.0, 0.0]), np.random.default_rng(1))
    assert found == pytest.approx(1.5, abs=0.2)  # E |u_1| = 1/2 on the sphere in three dimensions
    assert fidelity.sliced_wasserstein(x, x[::-1], np.random.default_rng(1)) == pytest.approx(0.0)


@pytest.mark.parametrize("kernel", [fidelity.kid, fidelity.mmd])
def test_kernel_distances_are_unbiased(kernel: Kernel) -> None:
    chance = np.random.default_rng(1)
    found = [kernel(*chance.standard_normal((2, 20, 3)), 1, chance)[0] for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20


def test_precision_recall_density_coverage_by_hand() -> None:
    # On a line with k = 1: real 0, 1, 10 with radii 1, 1, 9; synthetic 0.5, 2, 30 with radii 1.5, 1.5, 28.
    x, y = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [2.0], [30.0]])
    found = fidelity.prdc(x, y, 1)
    assert found["precision"].tolist() == [1, 1, 0]
    assert found["density"].tolist() == [2, 2, 0]  # 0.5 in the balls of 0 and 1; 2 in those of 1 and 10 (its edge is 1)
    assert found["recall"].tolist() == [1, 1, 1]  # 10 lies 20 from 30, whose ball reaches 28
    assert found["coverage"].tolist() == [1, 1, 1]
    far = fidelity.prdc(x, y + 100, 1)
    assert not far["precision"].any() and not far["density"].any() and not far["coverage"].any()


def test_equal_distributions_are_told_as_equal() -> None:
    x, y = CHANCE.standard_normal((2, 400, 8))
    found = measure(x, y)
    assert found["kid"].low < 0 < found["kid"].high
    assert found["c2st"].low < 0.5 < found["c2st"].high
    assert found["coverage"].estimate > 0.9
    assert found["density"].estimate == pytest.approx(1, abs=0.2)
    assert min(found["precision"].estimate, found["recall"].estimate) > 0.85
    assert all(e.warning is None for e in found.values())
    pointwise = {"frechet", "sliced_wasserstein"}
    assert all(e.low <= e.estimate <= e.high for name, e in found.items() if name not in pointwise)
    assert all(found[name].low is None for name in pointwise)


def test_a_shift_is_seen_by_every_metric() -> None:
    x, y = CHANCE.standard_normal((2, 300, 8))
    same, shifted = measure(x, y), measure(x, y + 2)
    for name in ("kid", "mmd"):
        assert shifted[name].low > same[name].high
    for name in ("frechet", "sliced_wasserstein"):
        assert shifted[name].estimate > 5 * same[name].estimate
    assert shifted["c2st"].low > 0.9
    for name in ("precision", "recall", "density", "coverage"):
        assert shifted[name].high < same[name].low


def test_collapse_is_seen_by_recall_and_coverage_and_not_by_precision() -> None:
    x, y = CHANCE.standard_normal((2, 300, 4))
    found = measure(x, 0.1 * y)
    assert found["precision"].estimate > 0.95
    assert found["recall"].estimate < 0.2 and found["coverage"].estimate < 0.5


def test_another_mix_of_classes_is_no_fault() -> None:
    centres = np.array([[0.0] * 4, [8.0] * 4])
    mixes = [np.repeat([0, 1], n) for n in ((300, 150), (150, 300))]
    x, y = (centres[t] + CHANCE.standard_normal((len(t), 4)) for t in mixes)
    found = measure(x, y, real_targets=mixes[0], synthetic_targets=mixes[1])
    assert found["kid"].low < 0 < found["kid"].high
    assert abs(found["c2st"].estimate - 0.5) < 0.1
    apart = measure(x, y)
    assert apart["c2st"].low > 0.55


def test_few_rows_give_a_warning_with_the_number_needed() -> None:
    x, y = CHANCE.standard_normal((2, 30, 4))
    few = measure(x, y)
    assert "above the distance" in (few.pop("frechet").warning or "")
    assert all("100 needed" in (e.warning or "") for e in few.values())
    none = measure(x[:4], y[:4])
    assert all(e.estimate is None and "100 to rely on it" in (e.warning or "") for e in none.values())
    disjoint = measure(x, y, synthetic_targets=np.ones(30, int))
    assert all(e.estimate is None for e in disjoint.values())


def test_intervals_cover() -> None:
    chance = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        e = fidelity.share((chance.random(80) < 0.3).astype(float), 200, chance)
        inside += bool(e.low <= 0.3 <= e.high)
    assert inside > 176
    assert fidelity.share(np.empty(0), 10, chance).estimate is None


def test_subsets_are_bounded_and_reproducible() -> None:
    x, y = CHANCE.standard_normal((2, 1600, 3))
    targets = np.zeros(1600, int)
    a, b = fidelity._matched(x, targets, y, targets, np.random.default_rng(0))
    assert len(a) == len(b) == fidelity.SUBSET
    assert measure(x[:100], y[:100]) == measure(x[:100], y[:100])
