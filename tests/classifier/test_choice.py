"""Choices as files: what is written is read again, and what is no choice is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.classifier.choice import CurvePoint, Missing, PoolChoice, RealChoice, Scores, Trial
from pipeline.errors import DataError

REAL = RealChoice(
    best_real_arm="augment",
    teacher="real",
    validation={"augment": Scores.of([0.5, 0.75]), "real": Scores.of([0.5, 0.5])},
    curve=(CurvePoint(extra=2, added=(0, 2), validation=Scores.of([1, 0.5])),),
)
POOL = PoolChoice(
    best_real_arm="augment",
    synthetic_fraction=0.5,
    labels="soft",
    grid=(Trial(synthetic_fraction=0.0, labels="hard", score=0.5), Trial(synthetic_fraction=0.5, labels="soft", score=0.6)),
    validation={"synthetic": Scores.of([0.6])},
    missing=Missing(short=(1,), none=()),
)


@pytest.mark.parametrize("choice", [REAL, POOL, REAL.model_copy(update={"curve": None}), REAL.model_copy(update={"curve": ()})])
def test_what_is_written_is_read_again(choice: RealChoice | PoolChoice, tmp_path: Path) -> None:
    choice.write(tmp_path)
    assert type(choice).read(tmp_path) == choice
    assert ("curve" in json.loads((tmp_path / "choice.json").read_text())) == (getattr(choice, "curve", None) is not None)


def test_the_file_has_these_keys(tmp_path: Path) -> None:
    REAL.write(tmp_path)
    assert json.loads((tmp_path / "choice.json").read_text()) == {
        "mode": "scratch",
        "best_real_arm": "augment",
        "teacher": "real",
        "validation": {"augment": {"scores": [0.5, 0.75], "mean": 0.625}, "real": {"scores": [0.5, 0.5], "mean": 0.5}},
        "curve": [{"extra": 2, "added": [0, 2], "validation": {"scores": [1.0, 0.5], "mean": 0.75}}],
    }
    POOL.write(tmp_path)
    assert json.loads((tmp_path / "choice.json").read_text()) == {
        "best_real_arm": "augment",
        "synthetic_fraction": 0.5,
        "labels": "soft",
        "grid": [
            {"synthetic_fraction": 0.0, "labels": "hard", "score": 0.5},
            {"synthetic_fraction": 0.5, "labels": "soft", "score": 0.6},
        ],
        "validation": {"synthetic": {"scores": [0.6], "mean": 0.6}},
        "missing": {"short": [1], "none": []},
    }


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: None, "No such file"),
        (lambda text: text[:-20], "EOF while parsing"),
        (lambda text: text.replace('"teacher"', '"pupil"'), "teacher: Field required"),
        (lambda text: text.replace('"real"', '"real", "more": 1', 1), "more: Extra inputs"),
        (lambda text: text.replace("0.625", "NaN"), "finite number"),
    ],
    ids=["missing", "torn", "of another version", "an unknown key", "no number"],
)
def test_what_is_no_choice_is_refused_in_one_line(spoil: object, said: str, tmp_path: Path) -> None:
    REAL.write(tmp_path)
    file = tmp_path / "choice.json"
    text = spoil(file.read_text())
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DataError, match=said) as told:
        RealChoice.read(tmp_path)
    assert "\n" not in str(told.value) and str(file) in str(told.value) and "run the stage train" in str(told.value)


def test_a_choice_of_a_pool_is_none_of_the_real_only_arms(tmp_path: Path) -> None:
    POOL.write(tmp_path)
    with pytest.raises(DataError):
        RealChoice.read(tmp_path)


def test_a_choice_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        REAL.teacher = "augment"
