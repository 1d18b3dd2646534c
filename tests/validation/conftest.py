"""Digits and their judges, fitted once."""

from __future__ import annotations

import pytest

from helpers.judged import CLASSES, PARAMS, PIXELS, Digits
from pipeline.encoders.judges import Judges
from pipeline.validation.checks import Checks


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="session")
def judges(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Judges:
    return digits.judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="session")
def checks(digits: Digits, judges: Judges) -> Checks:
    return Checks(digits.train, judges, PIXELS, CLASSES, settings=PARAMS.validate_, seed=0)
