"""release.json and metrics.json of a commit, which others may have written: read as what a release needs, or refused.

What is read here is safe to format and to look up: numbers are numbers, hashes are hashes (a file of DVC's cache is found by
one), names are one line each. Class names may be anything (`releases.plain`). Other keys stay as they are.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.config import ENSEMBLE
from pipeline.errors import DataError

POOLS, CHECKED = "data/pools/", "data/checked/"
MOST = 10**9  # of a version, images of a class


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of printable characters")
    return text


Name = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]
Count = Annotated[int, Field(ge=0, lt=MOST)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Interval(_Read):
    estimate: float
    low: float
    high: float


class _Metrics(_Read):
    """Of an arm; what has no value is null or absent."""

    balanced_accuracy: _Interval | None = None
    tail_recall: _Interval | None = None


class _Gain(_Metrics):
    balanced_accuracy: _Interval


class _Counts(_Read):
    made: Count
    accepted: Count


class Measured(_Read):
    """metrics.json, as far as a release shows it."""

    arms: dict[Name, _Metrics] = {}


class Judged(_Read):
    """metrics.json, as far as a release is made of it."""

    verdict: Name
    generator: Name
    baseline: Name
    gain: _Gain


class Record(Judged):
    """release.json: with {generator: {class: {made, accepted}}} and {path of a result: its hash}."""

    version: Annotated[int, Field(ge=1, lt=MOST)]
    classes: dict[Name, dict[str, _Counts]]
    outs: dict[str, Hash]

    @model_validator(mode="after")
    def _whole(self) -> Record:
        if self.generator != ENSEMBLE and self.generator not in self.classes:
            raise ValueError(f"the generator {self.generator} has no classes")
        if lacking := [part + name for name in self.classes for part in (POOLS, CHECKED) if part + name not in self.outs]:
            raise ValueError(f"no hash of {lacking[0]}")
        return self


def read(form: type[BaseModel], text: str, wrong: str) -> dict[str, Any]:
    """JSON text of this form. Raises DataError, which begins with `wrong`."""
    try:
        return form.model_validate_json(text).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"])
        raise DataError(
            f"{wrong} ({_short(f'{place}: ' if place else '')}{_short(first['msg'])})",
            expected="the file that `tailforge release` committed", remedy="`git log` says who changed it",
        ) from None  # fmt: skip


def _short(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:100]
