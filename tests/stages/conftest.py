"""For tests of the stage evaluate: what scikit-learn makes of the same rows is asked once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from torch import Tensor

from pipeline.core.manifest import Manifest
from pipeline.evaluation import reference

Known = dict[tuple[object, ...], Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def references() -> Iterator[Known]:
    """What the reference classifiers said, by what they were asked; `clear` has them fitted again.

    They would take four fifths of the time of evaluate, and most tests evaluate the same rows.
    """
    fitted, known = reference.probabilities, Known()

    def probabilities(train: Manifest, classes: list[str], images: Tensor, seed: int) -> Mapping[str, np.ndarray]:
        asked = repr(train.table.to_pylist()), tuple(classes), images.numpy().tobytes(), seed
        if asked not in known:
            known[asked] = fitted(train, classes, images, seed)
        return {name: values.copy() for name, values in known[asked].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "probabilities", probabilities)
        yield known
