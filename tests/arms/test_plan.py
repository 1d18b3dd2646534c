"""Plans: which rows an arm adds, and with what labels."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from helpers.digits_project import CLASSES
from helpers.plans import CONFIG, COUNTS, arm, labels, pixels, same, scattered, taught, training_data
from pipeline.arms import Arm, DeferredRecipe, Recipe, TrainingPlan, null_arms, recipes


def test_a_plan_cannot_say_how_many_steps_there_are() -> None:
    names = {field.name for field in fields(TrainingPlan)}
    assert names == {
        "images",
        "targets",
        "soft_labels",
        "weights",
        "draw",
        "transform",
        "offset",
        "added_offset",
        "n_added",
        "margin",
        "cosine",
        "mix",
        "low",
        "mix_alpha",
        "deferred",
    }


def test_soft_labels_are_the_teachers_at_the_prior_of_added_rows() -> None:
    data = taught(training_data())
    ours, replay = (arm(name, Recipe(tau=1.0), labels="soft").build(data, seed=2) for name in ("synthetic", "replay"))
    assert not ours.soft_labels[:11].any() and not replay.soft_labels[:11].any()
    assert data.pool_soft_labels is not None and data.augmented_soft_labels is not None
    np.testing.assert_allclose(ours.soft_labels[11:], data.pool_soft_labels, rtol=1e-6)
    # The pool has 8 rows of class 1 and 8 of class 2, of which the augmented images have two each.
    assert pixels(replay)[11:] == [152, 153] * 4 + [154, 155] * 4
    np.testing.assert_allclose(replay.soft_labels[11:], data.augmented_soft_labels[[2, 3] * 4 + [4, 5] * 4], rtol=1e-6)
    assert torch.equal(replay.targets, ours.targets) and torch.equal(replay.draw, ours.draw)
    for tau in (0.0, 1.0):
        plan = arm("synthetic", Recipe(tau=tau), labels="soft").build(data, seed=2)
        soft = plan.soft_targets(plan.offsets(plan))
        assert torch.equal(soft[:11], torch.nn.functional.one_hot(plan.targets[:11], 3).float())
        expected = data.pool_soft_labels * np.exp(plan.added_offset.numpy())
        np.testing.assert_allclose(soft[11:], expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_shuffled_and_synthetic_only_have_no_soft_labels() -> None:
    assert all(a.labels == "hard" for a in null_arms(Recipe(), synthetic_fraction=0.3).values())
    assert not arm("synthetic_only", labels="soft").build(taught(training_data()), 0).soft_labels.any()


@pytest.mark.parametrize("name", ["augment+logit_adjustment", "ldam_drw", "crt", "smote"])
def test_synthetic_fraction_zero_is_the_recipe_itself(name: str) -> None:
    recipe = recipes(CONFIG)[name]
    ours, real = (
        arm("synthetic", recipe, fraction=0.0, labels="soft").build(taught(training_data()), 5),
        Arm("x", recipe).build(training_data(), 5),
    )
    assert same(ours, real)


def test_rejected_rows_enter_the_unfiltered_arm_alone() -> None:
    accepted = np.arange(16) % 2 == 0
    data = training_data(accepted=accepted)
    rejected = set((100 + np.flatnonzero(~accepted)).tolist())
    for name, expected in (("synthetic", False), ("synthetic_only", False), ("replay", False), ("synthetic_unfiltered", True)):
        assert bool(rejected & set(pixels(arm(name).build(data, seed=0)))) is expected, name


def test_replay_adds_train_images_in_the_same_classes_numbers_and_weights() -> None:
    data = training_data()
    synthetic, replay = (arm(name).build(data, seed=2) for name in ("synthetic", "replay"))
    assert torch.equal(synthetic.targets, replay.targets)
    assert torch.equal(synthetic.draw, replay.draw)
    assert torch.equal(synthetic.offset, replay.offset)
    again = pixels(replay)[11:]
    assert max(again) < 11
    assert all(0 <= CLASSES.index(labels(COUNTS)[i]) == c for i, c in zip(again, replay.targets[11:].tolist(), strict=True))
    # Class 1 adds 8 rows of 3 images, class 2 adds 8 rows of 2: each image as often as the others.
    counts = np.bincount(again, minlength=11).tolist()
    assert counts[:6] == [0] * 6 and sorted(counts[6:9]) == [2, 3, 3] and counts[9:] == [4, 4]


def test_shuffled_labels_keep_the_images_and_the_numbers_of_each_class() -> None:
    kept, shuffled = (
        a.build(training_data(), seed=2) for a in (arm("synthetic"), null_arms(Recipe(), synthetic_fraction=0.6)["shuffled"])
    )
    assert torch.equal(kept.images, shuffled.images) and torch.equal(kept.targets[:11], shuffled.targets[:11])
    assert torch.equal(kept.targets.bincount(), shuffled.targets.bincount())
    assert not torch.equal(kept.targets, shuffled.targets)


def test_shuffled_takes_half_of_the_draws_where_the_synthetic_fraction_is_zero() -> None:
    null = null_arms(Recipe(), synthetic_fraction=0.0)
    assert null["shuffled"].synthetic_fraction == 0.5 and null["aa_control"].adds == "nothing"
    assert null_arms(Recipe(), synthetic_fraction=0.3)["shuffled"].synthetic_fraction == 0.3


def test_synthetic_only_holds_no_real_row() -> None:
    plan = arm("synthetic_only").build(training_data([8, 8, 2]), seed=0)
    assert min(pixels(plan)) >= 100
    assert torch.bincount(plan.targets).tolist() == [8, 8, 2]
    np.testing.assert_allclose(plan.draw.numpy(), 1 / 18)


@pytest.mark.parametrize(("balanced", "beta"), [(True, None), (False, 0.9)])
def test_a_deferred_schedule_is_the_plan_of_its_own_recipe(balanced: bool, beta: float | None) -> None:
    end = DeferredRecipe(0.25, balanced=balanced, beta=beta, head_only=balanced)
    whole = arm("synthetic", Recipe(tau=1.5, deferred=end)).build(training_data(), 0)
    first, second = (
        arm("synthetic", recipe).build(training_data(), 0)
        for recipe in (Recipe(tau=1.5), Recipe(tau=1.5, balanced=balanced, beta=beta))
    )
    assert whole.deferred is not None and whole.deferred.share == 0.25 and whole.deferred.head_only is balanced
    for name in ("weights", "draw", "offset"):
        assert torch.equal(getattr(whole, name), getattr(first, name))
        assert torch.equal(getattr(whole.deferred, name), getattr(second, name))
    assert not torch.equal(first.offset, second.offset)


@pytest.mark.parametrize(
    ("steps", "share", "switch"), [(100, 0.25, 75), (500, 0.2, 400), (1, 0.25, 1), (10, 0.0, 10), (7, 1.0, 0)]
)
def test_the_deferred_schedule_takes_its_share_of_the_steps(steps: int, share: float, switch: int) -> None:
    plan = Arm("x", Recipe(deferred=DeferredRecipe(share))).build(training_data(), 0)
    assert plan.switch(steps) == switch
    assert replace(plan, deferred=None).switch(steps) == steps


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_synthetic_and_replay_differ_in_the_added_images_alone(name: str) -> None:
    recipe = recipes(CONFIG)[name]
    ours, control = (arm(kind, recipe, 0.5).build(scattered([8, 3, 2], (0, 9, 9)), 3) for kind in ("synthetic", "replay"))
    assert same(replace(ours, images=control.images), control)
    differs = (ours.images != control.images).flatten(1).any(1)
    assert differs[-18:].all() and int(differs.sum()) == 18


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_every_recipe_works_without_real_rows_and_with_a_class_without_rows(name: str) -> None:
    data = scattered([8, 3, 2], (0, 4, 1))
    plan = arm("synthetic_only", recipes(CONFIG)[name]).build(data, 3)
    for part in (plan, plan.deferred or plan):
        assert float(part.draw.sum()) == pytest.approx(1.0)
        assert bool((part.weights > 0).all() and part.weights.isfinite().all() and part.offset.isfinite().all())
    assert bool(plan.margin.isfinite().all()) and not (plan.targets == 0).any()
