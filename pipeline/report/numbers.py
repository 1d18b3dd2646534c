"""Numbers and intervals as text: the one place that writes them, for the page, the terminal, Markdown and CHANGELOG.md.

Scores and shares in [0, 1] are read as percentages with one decimal, differences of scores as points with a sign. A value that
is not zero is not printed as zero while two decimals can tell it apart. Nothing here is markup, and nothing heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

NONE = "–"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval; None where there is no such number."""

    estimate: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: object) -> Interval:
        """From {"estimate", "low", "high"}, from a bare number, or from nothing."""
        if isinstance(value, Mapping):
            return cls(*(finite(value.get(name)) for name in ("estimate", "low", "high")))
        return cls(finite(value))

    @property
    def known(self) -> list[float]:
        """The numbers that are there."""
        return [v for v in (self.estimate, self.low, self.high) if v is not None]

    def minus(self, other: Interval) -> float | None:
        """The difference of the two estimates, if both are there."""
        return None if self.estimate is None or other.estimate is None else self.estimate - other.estimate


def finite(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]


def _decimals(value: float) -> str:
    text = f"{abs(value):.2f}" if 0 < abs(value) < 0.05 else f"{abs(value):.1f}"
    return f"{MINUS}{text}" if value < 0 else text


def percent(value: float | None) -> str:
    """0.8734 -> 87.3"""
    return NONE if value is None else _decimals(100.0 * value)


def points(value: float | None) -> str:
    """0.0213 -> +2.1"""
    if value is None:
        return NONE
    return ("+" if value > 0 else "") + _decimals(100.0 * value)


def percent_range(value: Interval) -> str:
    """The ends of an interval of a score: 85.1 to 89.0."""
    return "" if value.low is None or value.high is None else f"{percent(value.low)} to {percent(value.high)}"


def points_range(value: Interval) -> str:
    """The ends of an interval of a difference, in points: −0.4 to 3.4."""
    return percent_range(value)


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where it can be avoided."""
    if value is None:
        return NONE
    text = f"{abs(value):.3g}"
    return f"{MINUS}{text}" if value < 0 else text


def measure(value: float | None) -> str:
    """Three significant digits with their zeros, so that measurements line up: 4.00, 0.0213."""
    if value is None:
        return NONE
    text = f"{abs(value):#.3g}" if abs(value) < 1000 else f"{abs(value):,.0f}"
    return f"{MINUS}{text.rstrip('.')}" if value < 0 else text.rstrip(".")


def measure_range(value: Interval) -> str:
    """The ends of an interval of a measurement."""
    return "" if value.low is None or value.high is None else f"{measure(value.low)} to {measure(value.high)}"


def count(n: int | None, one: str = "", many: str = "") -> str:
    """1234 -> 1,234; with nouns: 1 image, 2 images."""
    if n is None:
        return NONE
    noun = one if n == 1 else many or f"{one}s"
    return f"{n:,} {noun}" if one else f"{n:,}"


def band(low: float | None, high: float | None) -> str:
    """What a check allows, in words."""
    if low is not None and high is not None:
        return f"{number(low)} to {number(high)}"
    if low is not None:
        return f"at least {number(low)}"
    return f"at most {number(high)}" if high is not None else ""


def images(value: float | None) -> str:
    """A number of images that need not be whole: 0, 3.4, 34, 1,234."""
    if value is None:
        return NONE
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:,.0f}"


def score(value: object) -> str:
    """A score with its interval: 0.912 [0.890, 0.931]; a dash where there is none. `value` as Interval.of takes it."""
    return _with_ends(value, ".3f")


def difference(value: object) -> str:
    """A difference of scores with its interval: +0.012 [-0.001, +0.030]."""
    return _with_ends(value, "+.3f")


def in_points(value: object) -> str:
    """A difference of scores in points: +1.2 [-0.1, +3.0]."""
    return _with_ends(value, "+.1f", 100.0)


def _with_ends(value: object, form: str, scale: float = 1.0) -> str:
    known = Interval.of(value).known
    if len(known) < 3:
        return NONE
    estimate, low, high = (format(scale * number, form) for number in known)
    return f"{estimate} [{low}, {high}]"
