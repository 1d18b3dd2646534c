"""What a metric is: a number in [0, 1] that says how good class probabilities are, and whether high or low is good.

    score      m(p, y) of one run: p float64 (n, k), the probabilities of n images, and y int64 (n,), their classes
    resample   m_rs of run s when image i counts w_ir times, for S runs and R weightings at once

`score` decides on validation rows. `resample` gives the intervals on test rows: with all weights 1 it is `score`, up to the
precision of float32. Both leave out classes that have no image, or none with a weight.

A metric lies in [0, 1], since results are told in per cent and in points. One that does not is brought there: exp(-loss) in the
place of a log loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar, final

import numpy as np

if TYPE_CHECKING:
    from pipeline.metrics.predictions import Predictions

Value = TypeVar("Value", float, np.ndarray)


class Metric(ABC):
    """A metric without settings or state. Workers get it pickled, so its class stands at the top of a module.

    `name` is its key in params.yaml, metrics.json and gains.csv; `title` is what a sentence calls it: "balanced accuracy".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        """Of one run: probabilities float64 (n, k) in [0, 1], targets int64 (n,) in [0, k). In [0, 1]."""

    @abstractmethod
    def resample(self, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        """float64 (R, S) in [0, 1]: of S runs under weights uint8 (n, R), which say how often each image counts."""

    @final
    def merit(self, value: Value) -> Value:
        """A number, or an array of them, that is higher where `value` is better."""
        return value if self.higher_is_better else -value

    @final
    def best(self, scores: Mapping[str, float]) -> str:
        """The name of the best score, the first of equals."""
        return max(scores, key=lambda name: self.merit(scores[name]))


def repeated(score: Callable[[np.ndarray, np.ndarray], float], predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`resample` for any `score`, by repeating each image as often as it counts: simple, and slow for many images.

    float64 (R, S) for weights uint8 (n, R).
    """
    rows = [np.repeat(np.arange(len(weights)), w) for w in weights.T]
    return np.array([[score(p[drawn], predictions.targets[drawn]) for p in predictions.probabilities] for drawn in rows])
