"""Everything that is measured of predictions, against scikit-learn, weighted and not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from pipeline.metrics import predictions
from pipeline.metrics.predictions import Predictions

K, S, N, R = 4, 3, 120, 7


def sample(ties: bool) -> tuple[Predictions, np.ndarray]:
    r = np.random.default_rng(0)
    targets = r.choice(K, size=N, p=[0.6, 0.25, 0.1, 0.05])
    p = r.random((S, N, K))
    p[:, np.arange(N), targets] += 0.4
    if ties:
        p = np.round(p * 3) + 1
    weights = r.integers(0, 4, size=(N, R)).astype(np.uint8)
    return Predictions(p / p.sum(2, keepdims=True), targets), weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("block", [64, 1 << 19])
def test_all_weightings_agree_with_sklearn(ties: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "BLOCK", block)
    one, weights = sample(ties)
    found = one.metrics(weights)
    y = one.targets
    for r in range(R):
        w = weights[:, r].astype(float)
        for s in range(S):
            p, guess = one.probabilities[s], one.probabilities[s].argmax(1)
            ours = found["recall"][r, s]
            np.testing.assert_allclose(ours, recall_score(y, guess, average=None, sample_weight=w, labels=range(K)), atol=1e-6)
            assert ours.mean() == pytest.approx(balanced_accuracy_score(y, guess, sample_weight=w), abs=1e-6)
            np.testing.assert_allclose(one.recall(weights)[r, s], ours)
            theirs = f1_score(y, guess, average=None, sample_weight=w, labels=range(K), zero_division=0.0)
            np.testing.assert_allclose(found["f1"][r, s], theirs, atol=1e-6)
            for c in range(K):
                area = roc_auc_score(y == c, p[:, c], sample_weight=w)
                assert found["auroc"][r, s, c] == pytest.approx(area, abs=1e-9)
                precision = average_precision_score(y == c, p[:, c], sample_weight=w)
                assert found["average_precision"][r, s, c] == pytest.approx(precision, abs=1e-9)


def test_calibration_error_by_hand() -> None:
    # 30 images in 15 bins of two: the confidence of each bin is equal, and one of the two is right.
    confidence = np.repeat(np.linspace(0.55, 0.95, 15), 2)
    p = np.stack([confidence, 1 - confidence], 1)[None]
    targets = np.tile([0, 1], 15)
    error = Predictions(p, targets).metrics(np.ones((30, 1), np.uint8))["calibration_error"]
    assert error[0, 0] == pytest.approx(np.mean(confidence - 0.5), abs=1e-6)


def test_calibrated_probabilities_have_no_calibration_error() -> None:
    r = np.random.default_rng(1)
    p = r.uniform(0.5, 1.0, 200_000)
    targets = (r.random(200_000) > p).astype(int)
    error = Predictions(np.stack([p, 1 - p], 1)[None], targets).metrics(np.ones((200_000, 1), np.uint8))["calibration_error"]
    assert error[0, 0] < 0.005


def test_a_class_without_test_rows_has_no_value() -> None:
    one, weights = sample(False)
    keep = one.targets != 3
    found = Predictions(one.probabilities[:, keep], one.targets[keep]).metrics(weights[keep])
    for name in ("recall", "f1", "auroc", "average_precision"):
        assert np.isnan(found[name][..., 3]).all()
        assert np.isfinite(found[name][..., :3]).all()


def test_a_shifted_prior_moves_recall_and_neither_auroc_nor_average_precision() -> None:
    one, weights = sample(False)
    odds = np.log(one.probabilities)
    odds[..., 3] += 3.0
    moved = Predictions(np.exp(odds), one.targets)  # scores, each class's in their order
    before, after = one.metrics(weights), moved.metrics(weights)
    assert (after["recall"][..., 3] > before["recall"][..., 3]).all()
    for name in ("auroc", "average_precision"):
        np.testing.assert_array_equal(before[name][..., 3], after[name][..., 3])
