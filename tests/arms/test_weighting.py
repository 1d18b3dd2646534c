"""Draws, weights, offsets and margins, by their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.digits_project import CLASSES, rows
from helpers.plans import COUNTS, PRIOR, arm, images, labels, pixels, scattered, training_data
from pipeline.arms import Arm, Recipe, TrainingData
from pipeline.arms.weighting import NEVER


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("recipe", "prior"), [(Recipe(tau=1.0), PRIOR), (Recipe(), PRIOR), (Recipe(balanced=True), np.full(3, 1 / 3))]
)
def test_the_synthetic_fraction_is_a_share_of_the_draws_and_the_rest_are_as_without_it(
    recipe: Recipe, prior: np.ndarray, fraction: float
) -> None:
    plan = arm("synthetic", recipe, fraction).build(training_data(), seed=3)
    added = np.asarray(pixels(plan)) >= 100
    draw, targets = plan.draw.numpy(), plan.targets.numpy()
    assert plan.n_added == added.sum() and not added[: len(added) - plan.n_added].any()
    np.testing.assert_allclose(np.bincount(targets, draw * ~added), (1 - fraction) * prior)
    np.testing.assert_allclose(np.bincount(targets, draw * added), [0.0, fraction / 2, fraction / 2], atol=1e-12)
    assert all(len(np.unique(draw[(targets == c) & part].round(12))) < 2 for c in range(3) for part in (added, ~added))
    without = Arm("x", recipe).build(training_data(), 3)
    assert torch.equal(plan.offset, without.offset) and torch.equal(plan.margin, without.margin)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_same_network_is_best_for_added_rows_and_for_the_others(tau: float) -> None:
    """f = log p(x | y) + log rho: under each part's offset, softmax(f + o) is the posterior at that part's prior."""
    plan = arm("synthetic", Recipe(tau=tau)).build(training_data([4, 8, 8]), seed=0)
    likelihood = np.array([0.2, 0.5, 0.9])
    f = np.log(likelihood) + (1 - tau) * np.log(PRIOR)
    for offset, prior in ((plan.offset, PRIOR), (plan.added_offset, np.full(3, 1 / 3))):
        posterior = np.exp(f + offset.numpy().astype(float))
        np.testing.assert_allclose(posterior / posterior.sum(), likelihood * prior / (likelihood * prior).sum(), rtol=1e-5)
    np.testing.assert_array_equal(plan.offsets(plan)[:11], plan.offset.expand(11, 3))
    np.testing.assert_array_equal(plan.offsets(plan)[11:], plan.added_offset.expand(20, 3))


def test_a_class_with_added_rows_alone_is_as_frequent_as_one_of_one_row() -> None:
    data = scattered([8, 3, 0], (0, 2, 5))
    plan = arm("synthetic", Recipe()).build(data, 0)
    np.testing.assert_allclose(plan.added_offset[1:].numpy(), np.log(0.5) - np.log(np.array([3, 1]) / 11), rtol=1e-5)
    assert plan.added_offset[0] == plan.offset[2] == NEVER  # the pool has no row of class 0, the real rows none of class 2


def test_a_class_without_rows_has_no_offset() -> None:
    plan = arm("synthetic_only", Recipe(tau=1.0)).build(training_data([0, 4, 4]), seed=0)
    assert plan.offset.tolist() == pytest.approx([0.0, np.log(0.5), np.log(0.5)])


def test_effective_numbers_by_the_formula() -> None:
    plan = Arm("x", Recipe(beta=0.9)).build(training_data(), 0)
    factor = np.array([0.1 / (1 - 0.9**n) for n in COUNTS])
    assert factor[2] == pytest.approx(1 / 1.9)  # two rows: 1 + beta
    factor /= factor.mean()
    np.testing.assert_allclose(plan.weights.numpy(), np.repeat(factor, COUNTS), rtol=1e-6)
    np.testing.assert_allclose(plan.draw.numpy(), 1 / 11)


def test_effective_numbers_lie_between_no_weights_and_one_over_the_count() -> None:
    none, inverse = (Arm("x", Recipe(beta=beta)).build(training_data(), 0).weights.numpy() for beta in (0.0, 1 - 1e-9))
    np.testing.assert_allclose(none, 1.0)
    mass = np.bincount(np.repeat([0, 1, 2], COUNTS), inverse)
    np.testing.assert_allclose(mass, mass[0], rtol=1e-5)


def test_effective_numbers_and_margins_count_the_rows_before_any_is_added() -> None:
    recipe = Recipe(beta=0.9, margin=0.5, cosine=10.0)
    factor = np.array([0.1 / (1 - 0.9**n) for n in COUNTS])
    for name in ("synthetic", "replay"):
        plan = arm(name, recipe).build(training_data(), 0)
        np.testing.assert_allclose(plan.weights.numpy()[:11], (factor / factor.mean())[plan.targets[:11]], rtol=1e-6)
        assert bool((plan.weights[11:] == 1).all())
        np.testing.assert_allclose(plan.margin.numpy(), 10 * 0.5 * (2 / np.array(COUNTS)) ** 0.25, rtol=1e-6)


def test_margins_by_hand() -> None:
    # 16 rows and 1: the fourth root of 16 is 2.
    data = TrainingData.of(rows(images(17), labels([16, 1]), "train"), CLASSES[:3])
    margin = Arm("x", Recipe(margin=0.5, cosine=8.0)).build(data, 0).margin
    assert margin.tolist() == [2.0, 4.0, 0.0]  # no row, no margin
    assert Arm("x", Recipe(margin=0.5)).build(data, 0).margin.tolist() == [0.25, 0.5, 0.0]
    assert Arm("x", Recipe()).build(data, 0).margin.tolist() == [0.0] * 3
