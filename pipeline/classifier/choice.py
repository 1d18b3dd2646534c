"""What was chosen on validation rows: choice.json of the real-only runs, and of the runs with a pool.

    RealChoice   the teacher and the best real-only arm, among the scores of all
    PoolChoice   synthetic fraction and labels, among the trials; the scores of the arms that have them

Each is written once, where the choice is made, and read by who builds on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.arms import Labels
from pipeline.config import Mode
from pipeline.core import work
from pipeline.errors import DataError
from pipeline.metrics.base import Metric

FILE = "choice.json"


class _Record(BaseModel):
    """Frozen, and of known keys alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Scores(_Record):
    """One arm's scores on validation rows."""

    scores: tuple[float, ...]  # in [0, 1], by seed
    mean: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scores:
        """With their mean."""
        return cls(scores=tuple(scores), mean=float(np.mean(scores)))


class CurvePoint(_Record):
    """The best real-only arm with at most `extra` more real images of each class."""

    extra: int
    added: tuple[int, ...]  # images of each class that were added
    validation: Scores


class ClassRecall(_Record):
    """Recall of the class with this index on its validation images, mean over runs."""

    index: int
    recall: float
    images: int


class Headroom(_Record):
    """What is left to add on validation rows (headroom.py)."""

    score: float
    errors: float
    images: int
    weakest: tuple[ClassRecall, ...]
    curve: float | None = None
    curve_extra: int | None = None


class Trial(_Record):
    """One synthetic fraction with one kind of labels, and its mean score."""

    synthetic_fraction: float
    labels: Labels
    score: float


class Missing(_Record):
    """Classes, by index, that the pool fills in part (`short`), and those of which it has no accepted image (`none`)."""

    short: tuple[int, ...]
    none: tuple[int, ...]


class _Choice(_Record):
    validation: Mapping[str, Scores]  # by arm

    def write(self, folder: Path) -> None:
        """Put choice.json into `folder`, after all that it tells of."""
        work.write_json(folder / FILE, self.model_dump(exclude_none=True))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The choice in `folder`. Raises DataError where the file is missing, torn, or of another kind."""
        file = folder / FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}", remedy="run the stage train") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{file}: {where}{': ' if where else ''}{first['msg']}", remedy="run the stage train") from error


class RealChoice(_Choice):
    """Of the real-only arms. The teacher is of the mode of the best one."""

    mode: Mode = "scratch"
    best_real_arm: str  # of the highest mean score
    teacher: str  # the best of those that are recipes by themselves; its runs give soft labels
    curve: tuple[CurvePoint, ...] | None = None  # None where none is wanted, empty where no row is in reserve
    headroom: Headroom | None = None  # None where an older version made the choice

    def best_of_modes(self, metric: Metric) -> dict[str, str]:
        """The best arm of each mode; {} unless several were compared."""
        modes = dict.fromkeys(arm.partition(":")[0] for arm in self.validation if ":" in arm)
        own = {mode: {a: row.mean for a, row in self.validation.items() if a.startswith(f"{mode}:")} for mode in modes}
        return {mode: metric.best(means) for mode, means in own.items()}


class PoolChoice(_Choice):
    """Of the arms with one family's pool, or the ensemble's."""

    best_real_arm: str  # what synthetic images are added to
    synthetic_fraction: float
    labels: Labels
    grid: tuple[Trial, ...]
    missing: Missing
