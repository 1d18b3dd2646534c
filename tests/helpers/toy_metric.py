"""A metric of another package that is better when it is low."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from pipeline.metrics import Metric, Predictions, repeated
from pipeline.registry import METRICS


class ErrorRate(Metric):
    """The share of the images that are told wrong."""

    name, title, higher_is_better = "error_rate", "error rate", False

    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        return float((probabilities.argmax(1) != targets).mean())

    def resample(self, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        return repeated(self.score, predictions, weights)


def install(patch: pytest.MonkeyPatch, name: str = "error_rate", place: str = "helpers.toy_metric:ErrorRate") -> None:
    """As if a package with this entry point were installed."""
    patch.setitem(vars(METRICS), "outside", {name: EntryPoint(name, place, METRICS.group)})
