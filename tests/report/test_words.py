"""Sentences."""

from __future__ import annotations

import pytest

from pipeline.metrics.registry import named
from pipeline.report import words
from pipeline.report.numbers import Interval


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ({"why": "always"}, "drift.retrain is always"),
        ({"why": "new", "class": "a\u202eb"}, "class a\ufffdb is new"),
        ({"why": "vanished", "class": "a"}, "class a has vanished"),
        ({"why": "form"}, "images have another size or other channels"),
        ({"why": "gone", "value": 1}, "1 train image of those they were fitted on went, or changed name, label or side"),
        ({"why": "regions", "value": 2}, "2 train images of those they were fitted on got another region"),
        ({"why": "drift", "class": "a", "value": 0.0042}, "images of class a changed (adjusted p 0.0042)"),
        ({"why": "together", "value": 0.01}, "images of all classes together changed (adjusted p 0.01)"),
        ({"why": "counts", "class": "a", "value": 0.25}, "class a grew by 25.0 %"),
    ],
)
def test_every_reason_for_fitting_anew_has_words(reason: dict[str, object], said: str) -> None:
    assert words.drift({"decision": "retrain", "came": 1, "reasons": [reason]}) == (
        f"generators fitted anew, 1 train image came: {said}"
    )


def test_text_of_any_length_is_cut() -> None:
    assert words.clip("a\n b", 10) == "a b"
    assert words.clip("x" * 500, 10) == "x" * 9 + "…"
    assert words.clip("a\u202eb\x00c") == "a\ufffdb\ufffdc", "no name turns the text around it"
    assert words.listing([str(i) for i in range(9)], 2) == "0, 1 and 7 more"


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


def test_equivalent_real_images_say_where_an_end_is_open() -> None:
    found = {
        "real_images_per_class": 34.2,
        "low": 0.0,
        "high": 300.0,
        "beyond": False,
        "low_beyond": False,
        "high_beyond": True,
    }
    assert words.real_images(found) == "worth about 34 real images a class [0, more than 300]"
    assert words.real_images(found | {"high": 80.4, "high_beyond": False}).endswith("about 34 real images a class [0, 80]")
    beyond = {"real_images_per_class": 300.0, "low": 300.0, "beyond": True, "low_beyond": True}
    assert words.real_images(found | beyond) == "worth more than 300 real images a class [more than 300, more than 300]"
    assert words.real_images(found | {"real_images_per_class": 0.0}) == "worth no real images a class [0, more than 300]"


def test_the_verdict_is_told_in_points_of_the_metric_that_decided() -> None:
    assert words.verdict("gain", Interval(-0.021), "error rate") == ("Gain", "Synthetic images help: −2.1 points of error rate")
    assert words.verdict("no_gain", Interval(None), "macro F1") == ("No gain shown", "No gain shown: nothing to compare")


def test_metrics_and_columns_have_titles() -> None:
    assert [words.metric(n) for n in ("macro_f1", "tail_recall", "auroc")] == ["macro F1", "tail recall", "AUROC"]
    assert words.capital("worst-class recall") == "Worst-class recall" and words.capital("") == ""


def test_measures_of_a_model_say_which_way_is_good() -> None:
    title, note = words.model_measures(named("worst_class_recall"))["cas"]
    assert title == "Classification accuracy score"
    assert note == "worst-class recall of a classifier that saw these images alone; high is good"
