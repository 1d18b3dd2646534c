"""Reference rows: what scikit-learn's classifiers make of the same train rows.

Logistic regression, a random forest and gradient boosted trees on pixels (pipeline/encoders/pixels.py), with balanced class
weights. They ask whether the networks are needed at all. scikit-learn keeps no weights in a format that runs no code when it is
read, so they are fitted where they are used, once each: their intervals know of groups and not of seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.core.manifest import Manifest
from pipeline.core.seeds import derive
from pipeline.encoders.pixels import Pixels


def probabilities(train: Manifest, classes: list[str], images: Tensor, seed: int) -> Mapping[str, np.ndarray]:
    """Fit each on `train` and predict `images`: float64 (1, n, k) by name. Raises LeakError for rows that are not train."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    rows, targets = train.training_tensors(classes, "a reference classifier")
    encoder = Pixels((int(rows.shape[1]), int(rows.shape[2]), int(rows.shape[3])))
    x, test = (encoder.features(part.numpy()).astype(np.float64) for part in (rows, images))
    y = targets.numpy()
    state = derive(seed, "reference") % 2**31
    models: Mapping[str, Any] = {
        "logistic_regression": LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000),
        "random_forest": RandomForestClassifier(300, class_weight="balanced_subsample", random_state=state, n_jobs=-1),
        "gradient_boosting": HistGradientBoostingClassifier(class_weight="balanced", random_state=state),
    }
    out = {}
    for name, model in models.items():
        model.fit(x, y)
        out[name] = np.zeros((1, len(test), len(classes)))
        out[name][0][:, model.classes_] = model.predict_proba(test)
    return out
