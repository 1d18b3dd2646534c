"""Training data: what may enter it, where a synthetic row came from, and the rows in reserve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.digits_project import CLASSES, rows
from helpers.plans import CONFIG, COUNTS, arm, images, labels, pixels, same, train, training_data
from pipeline.arms import Arm, Recipe, TrainingData, recipes
from pipeline.errors import LeakError


@settings(max_examples=60, deadline=None)
@given(
    split=st.sampled_from(["train", "val", "test", "external"]),
    origin=st.sampled_from(["real", "synthetic"]),
    pool_split=st.sampled_from(["train", "val", "test"]),
    pool_origin=st.sampled_from(["real", "synthetic"]),
    source=st.sampled_from([None, "d-train-0", "d-train-10", "d-val-0", "d-test-3", "s-train-0", ""]),
    where=st.integers(0, 10),
)
def test_only_real_train_rows_and_synthetic_rows_from_them_enter(
    split: str, origin: str, pool_split: str, pool_origin: str, source: str | None, where: int
) -> None:
    def one_odd(n: int, usual: object, odd: object) -> list[object]:
        return [odd if i == where % n else usual for i in range(n)]

    real = rows(images(11), labels(COUNTS), "train", split=one_odd(11, "train", split), origin=one_odd(11, "real", origin))
    made = rows(
        images(4), labels([0, 2, 2]), "train", "synthetic", "s", split=one_odd(4, "train", pool_split),
        origin=one_odd(4, "synthetic", pool_origin), sources=one_odd(4, ["d-train-0"], None if source is None else [source]),
    )  # fmt: skip
    fine = (split, origin, pool_split, pool_origin) == ("train", "real", "train", "synthetic")
    if fine and source in (None, "d-train-0", "d-train-10"):
        assert len(TrainingData.of(real, CLASSES[:3], made).pool_targets) == 4
    else:
        with pytest.raises(LeakError):
            TrainingData.of(real, CLASSES[:3], made)


def test_replay_takes_the_sources_of_the_row_where_they_are_known() -> None:
    sources: list[object] = [["d-train-7", "d-train-0"]] * 8 + [["d-train-10"]] * 8
    plan = arm("replay").build(training_data(sources=sources), seed=2)
    assert set(pixels(plan)[11:]) == {7, 10}


# The learning curve: real rows that scarcity left out, as if it had not.


HELD = [2, 7, 9]


def reserve(split: str = "reserve", origin: str = "real", counts: list[int] = HELD) -> object:
    made = rows(images(sum(counts), 100), labels(counts), split, origin, "r")
    return made.take(np.random.default_rng(1).permutation(len(made)))


def with_reserve(most: int = 8, seed: int = 0) -> TrainingData:
    return TrainingData.of(train(), CLASSES[:3]).with_reserve(reserve(), CLASSES[:3], most=most, seed=seed)


def extra_rows(m: int, data: TrainingData, recipe: Recipe = Recipe()) -> list[tuple[int, int]]:  # noqa: B008
    """(class, grey level) of the rows that an arm of the curve has besides the train rows."""
    plan = Arm("curve", recipe).build(data.enlarged(m), 0)
    n = sum(COUNTS)
    assert pixels(plan)[:n] == list(range(n)) and plan.n_added == 0
    return list(zip(plan.targets[n:].tolist(), pixels(plan)[n:], strict=True))


def test_the_rows_of_a_short_curve_are_among_those_of_a_longer_one() -> None:
    data = with_reserve()
    held = [extra_rows(m, data) for m in (1, 3, 8)]
    assert [np.bincount([c for c, _ in found], minlength=3).tolist() for found in held] == [[1, 1, 1], [2, 3, 3], [2, 7, 8]]
    assert set(held[0]) < set(held[1]) < set(held[2]) and len(set(held[2])) == 17
    first = np.cumsum([0, *HELD]) + 100
    assert all(first[c] <= level < first[c + 1] for c, level in held[2])  # each with its own label
    assert data.reserve_counts(3).tolist() == [2, 3, 3]
    # What is held for a longer curve does not change a shorter one; another seed does.
    assert extra_rows(3, with_reserve(most=3)) == held[1] != extra_rows(3, with_reserve(seed=1))
    assert held[1] != [(c, first[c] + i) for c, n in enumerate([2, 3, 3]) for i in range(n)]  # drawn, not the first ones


def test_the_enlarged_rows_are_the_train_rows_of_which_priors_and_margins_are_taken() -> None:
    data, n = with_reserve(), np.array(COUNTS) + np.array([2, 4, 4])
    plan = Arm("curve", Recipe(tau=1.0, margin=0.5)).build(data.enlarged(4), 0)
    np.testing.assert_allclose(plan.offset, np.log(n / n.sum()), rtol=1e-6)
    np.testing.assert_allclose(plan.draw, 1 / n.sum())
    np.testing.assert_allclose(plan.margin, 0.5 * (n.min() / n) ** 0.25, rtol=1e-6)


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_without_extra_rows_the_reserve_changes_nothing(name: str) -> None:
    bare, held = TrainingData.of(train(), CLASSES[:3]), with_reserve()
    assert same(Arm(name, recipes(CONFIG)[name]).build(bare, 0), Arm(name, recipes(CONFIG)[name]).build(held, 0))


@pytest.mark.parametrize("wrong", [("train", "real"), ("val", "real"), ("test", "real"), ("reserve", "synthetic")])
def test_a_learning_curve_takes_real_rows_in_reserve_alone(wrong: tuple[str, str]) -> None:
    with pytest.raises(LeakError):
        TrainingData.of(train(), CLASSES[:3]).with_reserve(reserve(*wrong), CLASSES[:3], most=2, seed=0)
    with pytest.raises(LeakError, match="reserve"):
        TrainingData.of(reserve(), CLASSES[:3])


def test_a_reserve_without_rows_adds_none() -> None:
    data = TrainingData.of(train(), CLASSES[:3]).with_reserve(reserve(counts=[0, 0, 0]), CLASSES[:3], most=4, seed=0)
    assert data.reserve_counts(4).tolist() == [0, 0, 0] and extra_rows(4, data) == []
