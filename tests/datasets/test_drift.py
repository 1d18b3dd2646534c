"""Drift against known answers: equal data, changed classes, labels, counts; what may be re-used and what may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.digits_project import ROOT
from helpers.versions import DIGITS, first, noisy, version
from pipeline import config
from pipeline.core.manifest import Manifest
from pipeline.datasets import drift
from pipeline.datasets.drift import Sample, two_sample
from pipeline.encoders.statistics import Statistics

SETTINGS = config.read(ROOT / "params.yaml").drift
ENCODER = Statistics((1, 8, 8))


Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """drift.json of two versions, given as {class: images}."""
    made = iter(range(100))

    def run(before: dict[str, np.ndarray], after: dict[str, np.ndarray], **settings: Any) -> dict[str, Any]:
        versions = [version(tmp_path / f"{next(made)}", images) for images in (before, after)]
        return drift.compare(*versions, SETTINGS.model_copy(update=settings), 0, Statistics(versions[1].shape))

    return run


def why(found: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(reason["why"], reason.get("class")) for reason in found["reasons"]]


# The test


def sampled(rng: np.random.Generator, n: int, m: int, shift: float = 0.0, d: int = 6) -> Sample:
    units = rng.normal(size=(n + m, d))
    units[n:] += shift
    return Sample(units, np.repeat([False, True], [n, m]))


@pytest.mark.parametrize("kind", ["mmd", "energy"])
@pytest.mark.parametrize(("n", "m"), [(40, 8), (6, 4), (12, 12)])
def test_equal_data_are_called_changed_as_often_as_alpha_says(kind: str, n: int, m: int) -> None:
    """Of 600 pairs, 5 % and 20 % within three standard errors: neither too often nor a test that never rejects."""
    rng = np.random.default_rng(n * m)
    p = np.array([two_sample([sampled(rng, n, m)], kind, 99, rng)[0][0].p for _ in range(600)])
    for alpha in (0.05, 0.2):
        assert abs((p <= alpha).mean() - alpha) <= 3 * np.sqrt(alpha * (1 - alpha) / 600), alpha


def test_one_false_alarm_a_version_however_many_classes() -> None:
    """At 0.1 with 20 classes: unadjusted, nearly nine versions of ten would have an alarm."""
    rng = np.random.default_rng(0)
    alarms, unadjusted = 0, 0
    for _ in range(150):
        tests, together = two_sample([sampled(rng, 12, 5) for _ in range(20)], "mmd", 210, rng)
        assert together is not None
        alarms += min(t.adjusted for t in [*tests, together]) <= 0.1
        unadjusted += min(t.p for t in tests) <= 0.1
    assert alarms / 150 <= 0.1 + 3 * np.sqrt(0.09 / 150) and unadjusted / 150 > 0.7


@pytest.mark.parametrize("kind", ["mmd", "energy"])
def test_a_shift_is_found(kind: str) -> None:
    rng = np.random.default_rng(0)
    assert sum(two_sample([sampled(rng, 30, 10, 1.0)], kind, 199, rng)[0][0].p <= 0.01 for _ in range(20)) >= 19


def test_classes_too_small_to_be_sure_are_sure_together() -> None:
    """Three units and one: of four relabellings none is rare. Over ten such classes it is."""
    rng = np.random.default_rng(0)
    tests, together = two_sample([sampled(rng, 3, 1, 4.0) for _ in range(10)], "mmd", 2000, rng)
    assert min(test.p for test in tests) > 0.2 and together is not None and together.adjusted < 0.01


def test_p_values_are_those_of_all_relabellings() -> None:
    """Enumerated for 5 and 2 units, with the statistic written out from the definition."""
    rng = np.random.default_rng(3)
    sample = sampled(rng, 5, 2, 0.5, d=2)
    x = (sample.units - sample.units.mean(0)) / sample.units.std(0)
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    kernel = np.exp(-squared / np.median(squared[np.triu_indices(7, 1)]))

    def statistic(came: tuple[int, ...]) -> float:
        other = [i for i in range(7) if i not in came]
        within = kernel[np.ix_(came, came)].mean() + kernel[np.ix_(other, other)].mean()
        return float((within - 2 * kernel[np.ix_(came, other)].mean()) * 5 * 2 / 7)

    every = [statistic(pair) for pair in combinations(range(7), 2)]
    observed = statistic((5, 6))
    exact = np.mean(np.array(every) >= observed - 1e-9)
    (found,), together = two_sample([sample], "mmd", 20_000, rng)
    assert together is None and found.statistic == pytest.approx(observed)
    assert found.p == pytest.approx(exact, abs=0.015) and found.adjusted == found.p


def test_single_units_and_equal_ones_are_never_sure() -> None:
    rng = np.random.default_rng(0)
    (one,), _ = two_sample([sampled(rng, 1, 1, 9.0)], "mmd", 500, rng)
    (equal,), _ = two_sample([Sample(np.ones((8, 3)), np.repeat([False, True], 4))], "energy", 500, rng)
    assert one.p == equal.p == 1.0 and equal.statistic == 0.0


def test_holm_by_hand() -> None:
    assert drift.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert drift.holm([0.5, 0.9]) == [1.0, 1.0] and drift.holm([]) == []


def test_images_of_one_object_are_one_witness() -> None:
    """Ten views of each of 4 new objects: taken for 40 witnesses they would be called a change every second time."""
    rng = np.random.default_rng(0)
    alarms = {"grouped": 0, "alone": 0}
    for _ in range(100):
        objects = rng.normal(size=(16, 4))
        views = objects.repeat(10, 0) + 0.1 * rng.normal(size=(160, 4))
        groups = np.arange(16).repeat(10).astype(str)
        for kind, names in (("grouped", groups), ("alone", np.arange(160).astype(str))):
            sides = [drift.units(views[rows], names[rows], rng) for rows in (slice(0, 120), slice(120, 160))]
            sample = Sample(np.concatenate(sides), np.repeat([False, True], [len(side) for side in sides]))
            alarms[kind] += two_sample([sample], "mmd", 99, rng)[0][0].p <= 0.05
    assert alarms["grouped"] <= 12 and alarms["alone"] >= 40


def test_the_mix_of_classes_has_its_level_and_its_power() -> None:
    rng = np.random.default_rng(0)
    before = np.array([60, 30, 10, 3])
    p = [drift.mix(before, rng.multinomial(15, before / before.sum()), 199, rng) for _ in range(300)]
    assert np.mean([v <= 0.05 for v in p if v is not None]) <= 0.05 + 3 * np.sqrt(0.0475 / 300)
    assert (drift.mix(before, np.array([0, 0, 12, 3]), 999, rng) or 1) < 0.01
    assert drift.mix(before, np.zeros(4), 99, rng) is None and drift.mix(np.array([3]), np.array([2]), 99, rng) is None


# What follows


def test_the_same_rows_are_the_same_whatever_their_order_or_groups(compare: Compare) -> None:
    turned = {name: own[::-1] for name, own in reversed(first(20).items())}
    for after in (first(20), turned):
        found = compare(first(20), after)
        assert (found["decision"], found["reasons"], found["came"], found["gone"]) == ("same", [], 0, 0)
        assert all(row["p"] is None for row in found["classes"]) and found["mix"] is None
    assert compare(first(20), first(20), retrain="always")["decision"] == "same"


def test_a_few_more_images_are_no_reason(compare: Compare) -> None:
    found = compare(first(40), first(45))
    assert found["decision"] == "reuse" and found["reasons"] == [] and found["came"] == 20
    row = found["classes"][0]
    assert (row["before"], row["after"], row["came"]) == (40, 45, 5) and 0.01 < row["adjusted"] <= 1 and found["mix"] > 0.5
    json.dumps(found, allow_nan=False)


def test_false_alarms_on_real_images_are_at_their_level() -> None:
    """At 0.2 over four classes: 150 draws of 20 and 4 digits of a class from one pile."""
    rng = np.random.default_rng(5)
    piles = [ENCODER.features(own).astype(np.float64) for own in DIGITS.values()]
    came = np.repeat([False, True], [20, 4])
    alarms = 0
    for _ in range(150):
        tests, together = two_sample([Sample(z[rng.permutation(len(z))[:24]], came) for z in piles], "mmd", 100, rng)
        assert together is not None
        alarms += min(test.adjusted for test in [*tests, together]) <= 0.2
    assert 0.05 <= alarms / 150 <= 0.2 + 3 * np.sqrt(0.16 / 150)


def test_a_class_whose_images_changed_is_named(compare: Compare) -> None:
    after = first(45)
    after["2"] = np.concatenate([DIGITS["2"][:40], noisy(DIGITS["2"][40:48])])
    found = compare(first(40), after)
    assert found["decision"] == "retrain" and ("drift", "2") in why(found)
    assert {name for kind, name in why(found) if kind == "drift"} == {"2"}


def test_new_images_under_a_wrong_label_are_found(compare: Compare) -> None:
    after = {
        name: np.concatenate([DIGITS[name][:40], DIGITS[other][40:47]]) for name, other in zip("0123", "1032", strict=True)
    }
    found = compare(first(40), after)
    assert {("drift", name) for name in "0123"} | {("together", None)} == set(why(found))


def test_swapped_labels_of_known_rows_are_found(compare: Compare) -> None:
    swapped = {"0": DIGITS["1"][:30], "1": DIGITS["0"][:30], "2": DIGITS["2"][:30], "3": DIGITS["3"][:30]}
    found = compare(first(30), swapped)
    assert found["gone"] == found["came"] == 60 and ("gone", None) in why(found)
    assert {name for kind, name in why(found) if kind == "drift"} == {"0", "1"}


def test_a_new_class_and_one_that_vanished_always_count(compare: Compare) -> None:
    found = compare(first(30, classes=3), first(30))
    assert found["new"] == ["3"] and why(found) == [("new", "3")] and found["decision"] == "retrain"
    found = compare(first(30), first(30, classes=3))
    assert found["vanished"] == ["3"] and set(why(found)) == {("vanished", "3"), ("gone", None)}
    assert found["classes"][3] | {"name": "3", "before": 30, "after": 0, "came": 0, "p": None} == found["classes"][3]


@pytest.mark.parametrize("more", [1, 2])
def test_classes_of_one_image(compare: Compare, more: int) -> None:
    """No test can be sure of them, and one more image is as many again: counts decide."""
    before, after = first(30), first(30)
    before["3"], after["3"] = DIGITS["3"][:1], DIGITS["3"][: 1 + more]
    found = compare(before, after)
    assert why(found) == [("counts", "3")] and found["reasons"][0]["value"] == more
    assert found["classes"][3]["adjusted"] > 0.3
    assert compare(before, after, least_change_of_counts=5.0)["decision"] == "reuse"


def test_counts_count_from_the_threshold_on(compare: Compare) -> None:
    before, after = first(40), first(40)
    after["1"] = DIGITS["1"][:50]
    assert why(compare(before, after)) == [("counts", "1")]
    after["1"] = DIGITS["1"][:49]
    assert compare(before, after)["decision"] == "reuse"


def test_a_row_that_went_or_changed_its_name_is_a_reason(compare: Compare, tmp_path: Path) -> None:
    found = compare(first(40), first(39))
    assert why(found) == [("gone", None)] and found["reasons"][0]["value"] == 4 and found["came"] == 0
    old, new = version(tmp_path / "a", first(20)), version(tmp_path / "b", first(20))
    rows = new.train().table
    names = [f"new/{name}" if i == 7 else name for i, name in enumerate(rows["sample_id"].to_pylist())]
    pq.write_table(Manifest(rows).table.set_column(0, rows.schema.field(0), [names]), tmp_path / "b/train.parquet")
    assert why(drift.compare(old, new, SETTINGS, 0, ENCODER)) == [("gone", None)]


def test_another_form_is_a_reason_and_is_not_compared(compare: Compare) -> None:
    larger = {name: own.repeat(2, 2).repeat(2, 3) for name, own in first(20).items()}
    found = compare(first(20), larger)
    assert why(found)[0] == ("form", None) and all(row["p"] is None for row in found["classes"])


def test_always_is_always_once_rows_changed(compare: Compare) -> None:
    assert why(compare(first(40), first(42), retrain="always")) == [("always", None)]


def test_relabellings_suffice_for_many_classes(compare: Compare) -> None:
    found = compare(first(40), first(45), permutations=10, alpha=0.001)
    assert found["relabellings"] == 5000


def test_a_group_with_views_on_both_sides_is_no_more_than_one_unit_of_each(tmp_path: Path) -> None:
    groups = [f"g{i // 10}" for i in range(40)]
    old = version(tmp_path / "a", {"0": DIGITS["0"][:40]}, classes=["0"], groups=groups)
    new = version(tmp_path / "b", {"0": DIGITS["0"][:50]}, classes=["0"], groups=[*groups, *["g3"] * 10])
    (sample,) = drift._samples(old.train(), new.train().take(np.arange(40, 50)), ["0"], 0, ENCODER)
    assert sample.came.tolist() == [False] * 4 + [True]
