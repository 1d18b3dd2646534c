"""release.json and metrics.json of a commit, which others may have written: read as what a release needs, or refused.

What is read here is safe to format and to look up: numbers are numbers, hashes are hashes (a file of DVC's cache is found by
one), names are one line each. Class names may be anything (`releases.plain`). Other keys stay as they are. What older versions
wrote is read in today's words (tailforge/older.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from pipeline.config import ENSEMBLE
from pipeline.errors import DataError
from pipeline.metrics.registry import primary
from tailforge import older

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


_Metrics = dict[Name, _Interval | None]  # what has no value is null or absent


class _Counts(_Read):
    made: Count
    accepted: Count


class Measured(_Read):
    """metrics.json, as far as a release shows it."""

    metric: Name = primary({})
    arms: dict[Name, _Metrics] = {}
    outside_knowledge: list[Name] = []


class Decided(_Read):
    """metrics.json, as far as a release is made of it: with a gain in the metric that decided."""

    metric: Name = primary({})
    verdict: Name
    generator: Name
    baseline: Name
    gain: _Metrics

    @model_validator(mode="after")
    def _decided(self) -> Decided:
        if self.gain.get(self.metric) is None:
            raise ValueError(f"no gain in {self.metric}")
        return self


class _Encoder(_Read):
    name: Name
    trained_on: Name
    licence: Name
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(Decided):
    """release.json: with {generator: {class: {made, accepted}}} and {path of a result: its hash}."""

    version: Annotated[int, Field(ge=1, lt=MOST)]
    classes: dict[Name, dict[str, _Counts]]
    outs: dict[str, Hash]
    encoder: _Encoder | None = None  # what images were looked at through

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
        found = from_json(text)
        return form.model_validate(older.record(found) if isinstance(found, dict) else found).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"])
        why = f"{_short(f'{place}: ' if place else '')}{_short(first['msg'])}"
    except ValueError as error:
        why = _short(f"Invalid JSON: {error}")
    raise DataError(
        f"{wrong} ({why})", expected="the file that `tailforge release` committed", remedy="`git log` says who changed it"
    )


def _short(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:100]
