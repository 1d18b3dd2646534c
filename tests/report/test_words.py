"""Numbers and sentences."""

from __future__ import annotations

import pytest

from pipeline.report import words
from pipeline.report.words import Interval


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0213, "+2.1"), (-0.0041, "−0.4"), (0.0, "0.0"), (0.0003, "+0.03"), (-0.0003, "−0.03"), (0.25, "+25.0"), (None, "–")],
)
def test_a_gain_is_in_points_with_a_sign_and_never_zero_unless_it_is(value: float | None, said: str) -> None:
    assert words.points(value) == said


def test_scores_are_percentages_with_one_decimal() -> None:
    assert words.percent(0.87349) == "87.3"
    assert words.percent(1.0) == "100.0"
    assert words.percent_range(Interval(0.5, 0.42, 0.58)) == "42.0 to 58.0"
    assert words.percent_range(Interval(0.5)) == ""


def test_an_interval_comes_from_what_is_there() -> None:
    assert Interval.of({"estimate": 1, "low": None}) == Interval(1.0)
    assert Interval.of(0.5) == Interval(0.5)
    assert Interval.of(float("nan")) == Interval.of(None) == Interval.of({}) == Interval.of(True) == Interval(None)


def test_measurements_keep_their_digits() -> None:
    assert [words.measure(v) for v in (4.0, 0.0213, -1.5, 12345.0, 100.0)] == ["4.00", "0.0213", "−1.50", "12,345", "100"]
    assert [words.number(v) for v in (4.0, 0.3, -2.5)] == ["4", "0.3", "−2.5"]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ({"why": "always"}, "drift.retrain is always"),
        ({"why": "new", "class": "a\u202eb"}, "class a\ufffdb is new"),
        ({"why": "vanished", "class": "a"}, "class a has vanished"),
        ({"why": "form"}, "images have another size or other channels"),
        ({"why": "gone", "value": 1}, "1 train image of those they were fitted on went, or changed name, label or side"),
        ({"why": "drift", "class": "a", "value": 0.0042}, "images of class a changed (adjusted p 0.0042)"),
        ({"why": "together", "value": 0.01}, "images of all classes together changed (adjusted p 0.01)"),
        ({"why": "counts", "class": "a", "value": 0.25}, "class a grew by 25.0 %"),
    ],
)
def test_every_reason_for_fitting_anew_has_words(reason: dict[str, object], said: str) -> None:
    assert words.drift({"decision": "retrain", "came": 1, "reasons": [reason]}) == (
        f"generators fitted anew, 1 train image came: {said}"
    )


def test_a_band_is_said_in_words() -> None:
    assert words.band(0.8, 6.25) == "0.8 to 6.25"
    assert words.band(0.5, None) == "at least 0.5"
    assert words.band(None, 2.0) == "at most 2"
    assert words.band(None, None) == ""


def test_text_of_any_length_is_cut() -> None:
    assert words.clip("a\n b", 10) == "a b"
    assert words.clip("x" * 500, 10) == "x" * 9 + "…"
    assert words.clip("a\u202eb\x00c") == "a\ufffdb\ufffdc", "no name turns the text around it"
    assert words.listing([str(i) for i in range(9)], 2) == "0, 1 and 7 more"
    assert (words.count(1, "image"), words.count(1234, "image"), words.count(None)) == ("1 image", "1,234 images", "–")


@pytest.mark.parametrize(
    ("word", "accepted", "made", "synthetic_fraction", "said"),
    [
        ("gain", 9, 12, 1.0, "tailforge export naive --out FOLDER"),
        ("harm", 9, 12, 1.0, "do not train with these images"),
        ("no_gain", 9, 12, 1.0, "the interval holds both gain and loss"),
        ("no_gain", 9, 12, 0.0, "a synthetic fraction of 0"),
        ("no_gain", 0, 12, None, "accepted no synthetic image"),
        ("no_gain", 0, 0, None, "no synthetic image was made"),
    ],
)
def test_advice_follows_the_reason(word: str, accepted: int, made: int, synthetic_fraction: float | None, said: str) -> None:
    told = words.advice(
        word,
        best="mixup",
        recipe="mixup",
        family="naive",
        accepted=accepted,
        made=made,
        synthetic_fraction=synthetic_fraction,
        labels=None,
    )
    assert said in " ".join(told)
    assert "mixup" in " ".join(told)
    assert "flow_matching" not in " ".join(told)


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0"), (0.04, "0.0"), (3.44, "3.4"), (9.96, "10"), (33.6, "34"), (1234.4, "1,234"), (None, "–")]
)
def test_a_number_of_images_is_as_exact_as_it_is_small(value: float | None, said: str) -> None:
    assert words.images(value) == said


def test_the_worth_says_where_an_end_is_open() -> None:
    worth = {
        "real_images_per_class": 34.2,
        "low": 0.0,
        "high": 300.0,
        "beyond": False,
        "low_beyond": False,
        "high_beyond": True,
    }
    assert words.real_images(worth) == "worth about 34 real images a class [0, more than 300]"
    assert words.real_images(worth | {"high": 80.4, "high_beyond": False}).endswith("about 34 real images a class [0, 80]")
    beyond = {"real_images_per_class": 300.0, "low": 300.0, "beyond": True, "low_beyond": True}
    assert words.real_images(worth | beyond) == "worth more than 300 real images a class [more than 300, more than 300]"
    assert words.real_images(worth | {"real_images_per_class": 0.0}) == "worth no real images a class [0, more than 300]"
