"""Numbers and intervals as text."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.report import numbers
from pipeline.report.numbers import Interval


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0213, "+2.1"), (-0.0041, "−0.4"), (0.0, "0.0"), (0.0003, "+0.03"), (-0.0003, "−0.03"), (0.25, "+25.0"), (None, "–")],
)
def test_a_gain_is_in_points_with_a_sign_and_never_zero_unless_it_is(value: float | None, said: str) -> None:
    assert numbers.points(value) == said


def test_scores_are_percentages_with_one_decimal() -> None:
    assert numbers.percent(0.87349) == "87.3"
    assert numbers.percent(1.0) == "100.0"
    assert numbers.percent_range(Interval(0.5, 0.42, 0.58)) == "42.0 to 58.0"
    assert numbers.percent_range(Interval(0.5)) == ""


def test_an_interval_comes_from_what_is_there() -> None:
    assert Interval.of({"estimate": 1, "low": None}) == Interval(1.0)
    assert Interval.of(0.5) == Interval(0.5)
    assert Interval.of(float("nan")) == Interval.of(None) == Interval.of({}) == Interval.of(True) == Interval(None)


def test_measurements_keep_their_digits() -> None:
    assert [numbers.measure(v) for v in (4.0, 0.0213, -1.5, 12345.0, 100.0)] == ["4.00", "0.0213", "−1.50", "12,345", "100"]
    assert [numbers.number(v) for v in (4.0, 0.3, -2.5)] == ["4", "0.3", "−2.5"]


def test_a_band_is_said_in_words() -> None:
    assert numbers.band(0.8, 6.25) == "0.8 to 6.25"
    assert numbers.band(0.5, None) == "at least 0.5"
    assert numbers.band(None, 2.0) == "at most 2"
    assert numbers.band(None, None) == ""


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0"), (0.04, "0.0"), (3.44, "3.4"), (9.96, "10"), (33.6, "34"), (1234.4, "1,234"), (None, "–")]
)
def test_a_number_of_images_is_as_exact_as_it_is_small(value: float | None, said: str) -> None:
    assert numbers.images(value) == said


def test_counts_stand_with_their_nouns() -> None:
    assert [numbers.count(1, "image"), numbers.count(1234, "image"), numbers.count(None)] == ["1 image", "1,234 images", "–"]


def test_an_interval_is_written_the_same_wherever_it_stands() -> None:
    value = {"estimate": 0.0123, "low": -0.0007, "high": 0.0299}
    assert numbers.score(value) == "0.012 [-0.001, 0.030]"
    assert numbers.difference(value) == "+0.012 [-0.001, +0.030]"
    assert numbers.in_points(value) == "+1.2 [-0.1, +3.0]"
    for write in (numbers.score, numbers.difference, numbers.in_points):
        assert write(None) == write({"estimate": 0.5}) == write({}) == "–"


def test_writing_numbers_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'scipy', 'numpy', 'pandas', 'pydantic', 'jinja2', 'sklearn'}"
    code = f"import sys, pipeline.report.numbers; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
