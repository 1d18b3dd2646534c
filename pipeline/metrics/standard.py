"""The metrics that come with tailforge, each a mean or a minimum over the classes that have images.

    balanced accuracy    mean_c R_c                    recall R_c: the share of the images of class c that are told right
    macro F1             mean_c 2 R_c P_c / (R_c + P_c)    precision P_c: the share of what is called c that is c
    worst-class recall   min_c R_c
    average precision    mean_c AP_c, one class against the rest: the area below precision over recall

The first three look at the likeliest class alone. Average precision looks at the order of the scores, so that a shifted
threshold does not change it. pipeline/metrics/predictions.py has the formulas under weights.
"""

from __future__ import annotations

import numpy as np

from pipeline.metrics.base import Metric
from pipeline.metrics.predictions import Predictions


class BalancedAccuracy(Metric):
    """Mean recall of the classes: what accuracy would be if all classes were equally frequent (Brodersen et al., 2010)."""

    name, title = "balanced_accuracy", "balanced accuracy"

    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        return float(np.mean(_recalls(probabilities, targets)))

    def resample(self, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        return self.over(predictions.recall(weights))

    @staticmethod
    def over(recall: np.ndarray) -> np.ndarray:
        """(R, S) of recall (R, S, classes); NaN, a class without weight, is left out."""
        return np.asarray(np.nanmean(recall, 2))


class WorstClassRecall(Metric):
    """Recall of the class that is told worst: it rises only when the worst class does."""

    name, title = "worst_class_recall", "worst-class recall"

    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        return float(np.min(_recalls(probabilities, targets)))

    def resample(self, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        return np.asarray(np.nanmin(predictions.recall(weights), 2))


class MacroF1(Metric):
    """Mean F1 of the classes: a class counts less where others are taken for it."""

    name, title = "macro_f1", "macro F1"

    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        return _as_they_are(self, probabilities, targets)

    def resample(self, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        return self.over(predictions.metrics(weights)["f1"][:, :, predictions.present])

    @staticmethod
    def over(f1: np.ndarray) -> np.ndarray:
        """(R, S) of F1 (R, S, classes)."""
        return np.asarray(np.nanmean(f1, 2))


class AveragePrecision(Metric):
    """Mean over the classes of the average precision of one against the rest."""

    name, title = "average_precision", "average precision"

    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        return _as_they_are(self, probabilities, targets)

    def resample(self, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        return self.over(predictions.metrics(weights)["average_precision"][:, :, predictions.present])

    @staticmethod
    def over(precision: np.ndarray) -> np.ndarray:
        """(R, S) of average precision (R, S, classes)."""
        return np.asarray(np.nanmean(precision, 2))


def _recalls(probabilities: np.ndarray, targets: np.ndarray) -> list[float]:
    """Recall of each class that `targets` holds."""
    right = probabilities.argmax(1) == targets
    return [right[targets == c].mean() for c in np.unique(targets)]


def _as_they_are(metric: Metric, probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The metric of one run with all weights 1."""
    return float(metric.resample(Predictions(probabilities[None], targets), np.ones((len(targets), 1), np.uint8))[0, 0])
