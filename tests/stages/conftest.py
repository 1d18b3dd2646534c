"""For tests of the stage evaluate: what scikit-learn makes of the same rows is asked once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from pipeline.config import Params
from pipeline.core.manifest import Manifest
from pipeline.encoders.base import Shape
from pipeline.evaluation import reference

Known = dict[tuple[object, ...], Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def references() -> Iterator[Known]:
    """What the reference classifiers said, by what they were asked; `clear` has them fitted again.

    They would take four fifths of the time of evaluate, and most tests evaluate the same rows.
    """
    fitted, known = reference.probabilities, Known()

    def probabilities(
        params: Params, shape: Shape, train: Manifest, test: Manifest, classes: list[str]
    ) -> Mapping[str, np.ndarray]:
        rows = [repr(part.table.to_pylist()) for part in (train, test)]
        asked = (*rows, tuple(classes), shape, params.seed, params.encoder)
        if asked not in known:
            known[asked] = fitted(params, shape, train, test, classes)
        return {name: values.copy() for name, values in known[asked].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "probabilities", probabilities)
        yield known
