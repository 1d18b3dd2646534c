"""Plans: what may enter them, in what numbers, with what prior."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from digits_project import CLASSES, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arms import Arm, Material, Recipe, TrainingPlan, recipes, synthetic_arms
from pipeline.config import Classifier
from pipeline.errors import LeakError

CONFIG = Classifier(
    network="small", width=8, steps=1, batch_images=8, lr=0.01, weight_decay=0.0, augment="affine", mixup_alpha=0.4, tau=1.0
)
COUNTS = [6, 3, 2]


def images(n: int, start: int = 0) -> np.ndarray:
    """uint8 (n, 1, 8, 8), image i constant start + i."""
    return np.broadcast_to(np.arange(start, start + n, dtype=np.uint8)[:, None, None, None], (n, 1, 8, 8))


def labels(counts: list[int]) -> list[str]:
    return [CLASSES[c] for c, n in enumerate(counts) for _ in range(n)]


def train() -> object:
    return rows(images(sum(COUNTS)), labels(COUNTS), "train")


def pool(counts: list[int], **columns: list[object]) -> object:
    return rows(images(sum(counts), 100), labels(counts), "train", "synthetic", "s", **columns)


def material(counts: list[int] = [0, 8, 8], accepted: np.ndarray | None = None, **columns: list[object]) -> Material:  # noqa: B006
    return Material.of(train(), CLASSES[:3], pool(counts, **columns), accepted)


def arm(name: str, recipe: Recipe = Recipe(), dose: float = 1.0, weight: float = 1.0) -> Arm:  # noqa: B008
    return synthetic_arms(recipe, dose=dose, weight=weight, fill_to=6)[name]


def pixels(plan: TrainingPlan) -> list[int]:
    return plan.images[:, 0, 0, 0].tolist()


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
        assert len(Material.of(real, CLASSES[:3], made).pool_targets) == 4
    else:
        with pytest.raises(LeakError):
            Material.of(real, CLASSES[:3], made)


def test_a_plan_cannot_say_how_many_steps_there_are() -> None:
    names = {field.name for field in fields(TrainingPlan)}
    assert names == {"images", "targets", "weights", "draw", "transform", "offset", "mixup_alpha"}


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_real_only_arms_hold_each_train_row_once(name: str) -> None:
    plan = Arm(name, recipes(CONFIG)[name]).build(material(), seed=1)
    assert pixels(plan) == list(range(11))
    assert torch.equal(plan.targets, torch.tensor([0] * 6 + [1] * 3 + [2] * 2))
    assert float(plan.draw.sum()) == pytest.approx(1.0)


def test_dose_one_fills_each_class_and_smaller_doses_are_subsets() -> None:
    stuff = material()
    plans = {dose: arm("synthetic", dose=dose).build(stuff, seed=3) for dose in (0.0, 0.5, 1.0)}
    assert [torch.bincount(p.targets).tolist() for p in plans.values()] == [[6, 3, 2], [6, 5, 4], [6, 6, 6]]
    chosen = [set(pixels(p)) for p in plans.values()]
    assert chosen[0] < chosen[1] < chosen[2]
    assert set(pixels(arm("synthetic").build(stuff, seed=4))) != chosen[2]


def test_dose_takes_what_there_is_of_a_class_that_cannot_be_filled() -> None:
    plan = arm("synthetic").build(material([5, 1, 8]), seed=0)
    assert torch.bincount(plan.targets).tolist() == [6, 4, 6]


def test_dose_zero_is_the_recipe_itself() -> None:
    recipe = recipes(CONFIG)["augment+logit_adjustment"]
    ours, real = arm("synthetic", recipe, dose=0.0).build(material(), 5), Arm("x", recipe).build(material(), 5)
    for field in fields(TrainingPlan):
        a, b = getattr(ours, field.name), getattr(real, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_rejected_rows_enter_the_unfiltered_arm_alone() -> None:
    accepted = np.arange(16) % 2 == 0
    stuff = material(accepted=accepted)
    rejected = set((100 + np.flatnonzero(~accepted)).tolist())
    for name, expected in (("synthetic", False), ("synthetic_only", False), ("replay", False), ("synthetic_unfiltered", True)):
        assert bool(rejected & set(pixels(arm(name).build(stuff, seed=0)))) is expected, name


def test_replay_adds_train_images_in_the_same_classes_numbers_and_weights() -> None:
    stuff = material()
    synthetic, replay = (arm(name, weight=0.3).build(stuff, seed=2) for name in ("synthetic", "replay"))
    assert torch.equal(synthetic.targets, replay.targets)
    assert torch.equal(synthetic.weights, replay.weights)
    assert torch.equal(synthetic.offset, replay.offset)
    again = pixels(replay)[11:]
    assert max(again) < 11
    assert all(0 <= CLASSES.index(labels(COUNTS)[i]) == c for i, c in zip(again, replay.targets[11:].tolist(), strict=True))
    # Class 1 adds 3 rows of 3 images, class 2 adds 4 rows of 2: each image as often as the others.
    assert np.bincount(again, minlength=11).tolist() == [0] * 6 + [1, 1, 1] + [2, 2]


def test_replay_takes_the_sources_of_the_row_where_they_are_known() -> None:
    sources: list[object] = [["d-train-7", "d-train-0"]] * 8 + [["d-train-10"]] * 8
    plan = arm("replay").build(material(sources=sources), seed=2)
    assert set(pixels(plan)[11:]) == {7, 10}


def test_synthetic_only_holds_no_real_row() -> None:
    plan = arm("synthetic_only").build(material([8, 8, 2]), seed=0)
    assert min(pixels(plan)) >= 100
    assert torch.bincount(plan.targets).tolist() == [6, 6, 2]


def test_the_prior_of_logit_adjustment_is_that_of_what_the_loss_sees() -> None:
    plan = arm("synthetic", Recipe(tau=2.0), weight=0.25).build(material(), seed=0)
    mass = np.array([6.0, 3 + 0.25 * 3, 2 + 0.25 * 4])
    np.testing.assert_allclose(plan.offset.numpy(), 2.0 * np.log(mass / mass.sum()), rtol=1e-6)


def test_even_classes_weigh_evenly_whatever_was_added() -> None:
    plan = arm("synthetic", Recipe(balanced=True), weight=0.25).build(material(), seed=0)
    mass = torch.bincount(plan.targets, plan.draw * plan.weights)
    draws = torch.bincount(plan.targets, plan.draw)
    np.testing.assert_allclose(draws.numpy(), [1 / 3] * 3)
    np.testing.assert_allclose((mass / mass.sum()).numpy(), [1 / 3] * 3, rtol=1e-6)
    tail = plan.weights[plan.targets == 2]
    assert float(tail.min() / tail.max()) == pytest.approx(0.25)


def test_a_class_without_rows_has_no_offset() -> None:
    plan = arm("synthetic_only", Recipe(tau=1.0)).build(material([0, 4, 4]), seed=0)
    assert plan.offset.tolist() == pytest.approx([0.0, np.log(0.5), np.log(0.5)])


def test_soft_targets_are_passed_on() -> None:
    soft = torch.tensor([[0.2, 0.8]])
    one, half = torch.ones(1), torch.ones(1, dtype=torch.float64)
    plan = TrainingPlan(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), soft, one, half, "none", torch.zeros(2))
    assert plan.soft_targets is soft
