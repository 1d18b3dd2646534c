"""Reference rows: what scikit-learn's classifiers make of the same train rows.

    on pixels     logistic regression, a random forest, gradient boosted trees (pipeline/encoders/pixels.py)
    on features   of the encoder, where params.encoder names one: logistic regression, nearest class mean, k nearest neighbours,
                  linear discriminant analysis with a shrunk covariance (Ledoit & Wolf, 2004)

Class weights or priors are even. They ask whether the networks are needed at all. scikit-learn keeps no weights in a format
that runs no code when it is read, so they are fitted where they are used, once each: their intervals know of groups and not of
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.arms.data import Look
from pipeline.config import Params
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import derive
from pipeline.encoders import store
from pipeline.encoders.base import Shape, fixed
from pipeline.encoders.pixels import Pixels

NEIGHBOURS = 5


def probabilities(
    params: Params, shape: Shape, train: Manifest, test: Manifest, classes: list[str]
) -> Mapping[str, np.ndarray]:
    """Fit each on `train` and predict `test`: float64 (1, n, k) by name. Raises LeakError for rows that are not train.

    Images have `shape` (c, h, w).
    """
    train.require_train("a reference classifier")
    state = derive(params.seed, "reference") % 2**31
    y, out = train.targets(classes).numpy(), dict[str, np.ndarray]()
    for look, models in _kinds(params, shape, len(classes), state):
        x, asked = look(train), look(test)
        for name, model in models.items():
            model.fit(x, y)
            out[name] = np.zeros((1, len(asked), len(classes)))
            out[name][0][:, model.classes_] = model.predict_proba(asked)
    return out


def _kinds(params: Params, shape: Shape, n_classes: int, state: int) -> list[tuple[Look, Mapping[str, Any]]]:
    """What is looked at, and the classifiers that are fitted on it."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = Pixels(shape)
    on_pixels: Mapping[str, Any] = {
        "logistic_regression": LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000),
        "random_forest": RandomForestClassifier(300, class_weight="balanced_subsample", random_state=state, n_jobs=-1),
        # 32 levels of brightness do, and take a fifth of the time of 255.
        "gradient_boosting": HistGradientBoostingClassifier(max_bins=32, class_weight="balanced", random_state=state),
    }
    found: list[tuple[Look, Mapping[str, Any]]] = [
        (lambda rows: pixels.features(rows.images().numpy()).astype(np.float64), on_pixels)
    ]
    if params.encoder.name != "none":
        even = np.full(n_classes, 1 / n_classes)
        encoder = fixed("pretrained", shape, params.encoder, "encoder.name")
        models = {
            "logistic_regression": LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000),
            # All of the covariance shrunk away: what is nearest counts.
            "nearest_mean": LinearDiscriminantAnalysis("lsqr", 1.0, priors=even),
            "nearest_neighbours": KNeighborsClassifier(NEIGHBOURS, weights="distance"),
            "discriminant_analysis": LinearDiscriminantAnalysis("lsqr", "auto", priors=even),
        }
        on_features = {f"encoder:{name}": make_pipeline(StandardScaler(), model) for name, model in models.items()}
        still = {store.STILL: torch.clone}
        found.append((lambda rows: store.embed(rows, encoder, still)[:, 0].astype(np.float64), on_features))
    return found
