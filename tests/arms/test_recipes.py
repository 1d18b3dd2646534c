"""Recipes: the real-only arms, and their students."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.digits_project import ROOT
from helpers.plans import CONFIG, arm, pixels, same, taught, training_data
from pipeline.arms import (
    Arm,
    DeferredRecipe,
    DeferredSchedule,
    Labels,
    Recipe,
    TrainingPlan,
    null_arms,
    recipe_of,
    recipes,
    synthetic_arms,
)
from pipeline.config import REAL_ARMS, SELF_DISTILLATION
from pipeline.report import words


def test_each_arm_that_settings_may_name_has_a_recipe() -> None:
    assert {*recipes(CONFIG), SELF_DISTILLATION} == set(REAL_ARMS)
    assert all(recipe_of(CONFIG, name, "augment") == recipe for name, recipe in recipes(CONFIG).items())


def test_each_arm_is_explained_in_the_report_and_has_a_row_in_the_docs() -> None:
    with_pool = {
        **synthetic_arms(Recipe(), synthetic_fraction=0.5, labels="hard"),
        **null_arms(Recipe(), synthetic_fraction=0.5),
    }
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8").split("## Arms")[1].split("## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(words.ARMS) == sorted([*REAL_ARMS, *with_pool])


def test_the_shipped_recipes_are_those_of_their_papers() -> None:
    known, config = recipes(CONFIG), CONFIG
    augment = Recipe(transform=config.augment)
    assert known["crt"] == replace(augment, deferred=DeferredRecipe(config.crt_share, balanced=True, head_only=True))
    drw = DeferredRecipe(config.drw_share, beta=config.class_balanced_beta)
    assert known["ldam_drw"] == replace(augment, margin=config.ldam_margin, cosine=config.cosine_scale, deferred=drw)
    assert known["class_balanced"] == replace(augment, beta=config.class_balanced_beta)
    assert known["cutmix+logit_adjustment"] == replace(known["cutmix"], tau=config.tau)
    assert known["augment+logit_adjustment_strong"].tau == config.tau_strong > config.tau


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_real_only_arms_hold_each_train_row_once(name: str) -> None:
    plan = Arm(name, recipes(CONFIG)[name]).build(training_data(), seed=1)
    more = 18 - 11 if name == "smote" else 0
    assert pixels(plan)[:11] == list(range(11)) and len(plan.images) == 11 + more
    assert torch.equal(plan.targets[:11], torch.tensor([0] * 6 + [1] * 3 + [2] * 2))
    assert float(plan.draw.sum()) == pytest.approx(1.0)


def test_a_student_neither_augments_nor_mixes() -> None:
    recipe, data = recipes(CONFIG)["cutmix+logit_adjustment"], taught(training_data())
    for name in ("synthetic", "synthetic_unfiltered", "replay"):
        plan, hard = (arm(name, recipe, labels=kind).build(data, 0) for kind in ("soft", "hard"))
        assert (plan.transform, plan.mix) == ("none", "none") and (hard.transform, hard.mix) == ("affine", "cutmix")
    for name, fraction in (("synthetic", 0.0), ("synthetic_only", 0.6)):
        plan = arm(name, recipe, fraction=fraction, labels="soft").build(data, 0)
        assert (plan.transform, plan.mix) == ("affine", "cutmix")


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_a_student_has_the_prior_that_its_teacher_ended_with(name: str) -> None:
    """The f that is best for real rows is the same, up to a constant: log p(x | y) + log rho, rho = prior / e^offset."""
    recipe = recipes(CONFIG)[name]
    student, plan = Arm("x", recipe.student()).build(training_data(), 0), Arm("x", recipe).build(training_data(), 0)
    end = plan.deferred or plan

    def rho(part: TrainingPlan | DeferredSchedule, targets: torch.Tensor) -> np.ndarray:
        mass = np.bincount(targets, (part.draw * part.weights).numpy(), 3) / np.exp(part.offset.numpy())
        return mass / mass.sum()

    np.testing.assert_allclose(rho(student, student.targets), rho(end, plan.targets), rtol=1e-5)
    assert (student.deferred, student.cosine, student.margin.any().item()) == (None, None, False)


DISTILLED = replace(recipes(CONFIG)["cutmix+logit_adjustment"].student(), distilled=0.4)


def test_self_distillation_gives_a_share_of_the_draws_to_augmented_images_with_soft_labels() -> None:
    data = taught(training_data())
    plan = Arm(SELF_DISTILLATION, DISTILLED).build(data, 0)
    assert pixels(plan) == [*range(11), *range(150, 156)] and plan.n_added == 6
    np.testing.assert_allclose(plan.soft_labels[11:], data.augmented_soft_labels, rtol=1e-6)
    np.testing.assert_allclose(plan.draw, [0.6 / 11] * 11 + [0.4 / 6] * 6)
    np.testing.assert_allclose(plan.added_offset, np.log(1 / 3), rtol=1e-6)
    assert (plan.transform, plan.mix) == ("none", "none") and not plan.soft_labels[:11].any()


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_synthetic_images_are_added_to_self_distillation_beside_its_augmented_images(labels: Labels) -> None:
    data = taught(training_data([8, 8, 0]))
    plan = arm("synthetic", DISTILLED, fraction=0.25, labels=labels).build(data, 0)
    shares = [float(part.sum()) for part in (plan.draw[:11], plan.draw[11:17], plan.draw[17:])]
    assert shares == pytest.approx([0.75 * 0.6, 0.75 * 0.4, 0.25]) and plan.n_added == 6 + 16
    # The prior of all that was added: augmented images of three classes, synthetic ones of two.
    prior = 0.3 * np.full(3, 1 / 3) + 0.25 * np.array([0.5, 0.5, 0])
    np.testing.assert_allclose(plan.added_offset, np.log(prior / prior.sum()), rtol=1e-6)
    mass = np.bincount(plan.targets[11:], plan.draw[11:])
    np.testing.assert_allclose(plan.added_offset, np.log(mass / mass.sum()), rtol=1e-6)
    assert plan.soft_labels[11:17].any() and bool(plan.soft_labels[17:].any()) == (labels == "soft")


def test_without_an_accepted_image_the_student_is_self_distillation_itself() -> None:
    data = taught(training_data(accepted=np.zeros(16, bool)))
    ours = arm("synthetic", DISTILLED, fraction=0.25, labels="soft").build(data, 0)
    assert same(ours, Arm(SELF_DISTILLATION, DISTILLED).build(data, 0))


def test_synthetic_images_alone_are_treated_as_the_teacher_treats_its_own() -> None:
    own = recipes(CONFIG)["cutmix+logit_adjustment"]
    only = synthetic_arms(DISTILLED, synthetic_fraction=0.25, labels="soft", alone=own)["synthetic_only"].build(
        taught(training_data()), 0
    )
    assert (only.transform, only.mix) == ("affine", "cutmix") and min(pixels(only)) >= 100 and max(pixels(only)) < 116
