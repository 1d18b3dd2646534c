"""Plans: what may enter them, in what numbers, with what prior."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.digits_project import CLASSES, params, rows
from pipeline import arms
from pipeline.arms import Arm, DeferredRecipe, DeferredSchedule, Recipe, TrainingData, TrainingPlan, recipes, synthetic_arms
from pipeline.config import REAL_ARMS, SELF_DISTILLATION
from pipeline.errors import LeakError

CONFIG = params(classifier={"network": "small", "steps": 1, "batch_images": 8, "lr": 0.01, "weight_decay": 0.0}).classifier
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


def material(counts: list[int] = [0, 8, 8], accepted: np.ndarray | None = None, **columns: list[object]) -> TrainingData:  # noqa: B006
    return TrainingData.of(train(), CLASSES[:3], pool(counts, **columns), accepted)


def judged(stuff: TrainingData) -> TrainingData:
    """`stuff` with soft_labels that tell each row from the others."""
    r, n = np.random.default_rng(0), len(stuff.pool_targets)
    return replace(
        stuff,
        pool_soft_labels=r.dirichlet(np.ones(stuff.n_classes), n),
        augmented_images=images(6, 150),
        augmented_targets=np.repeat(np.arange(3), 2),
        augmented_soft_labels=r.dirichlet(np.ones(stuff.n_classes), 6),
    )


def arm(name: str, recipe: Recipe = Recipe(), fraction: float = 0.6, labels: arms.Labels = "hard") -> Arm:  # noqa: B008
    return synthetic_arms(recipe, synthetic_fraction=fraction, labels=labels)[name]


def pixels(plan: TrainingPlan) -> list[int]:
    return plan.images[:, 0, 0, 0].tolist()


def same(a: object, b: object) -> bool:
    """Whether two plans, or two values of a field of theirs, are equal bit for bit."""
    if isinstance(a, (TrainingPlan, DeferredSchedule)):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


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
        "mix_alpha",
        "deferred",
    }


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_real_only_arms_hold_each_train_row_once(name: str) -> None:
    plan = Arm(name, recipes(CONFIG)[name]).build(material(), seed=1)
    more = 18 - 11 if name == "smote" else 0
    assert pixels(plan)[:11] == list(range(11)) and len(plan.images) == 11 + more
    assert torch.equal(plan.targets[:11], torch.tensor([0] * 6 + [1] * 3 + [2] * 2))
    assert float(plan.draw.sum()) == pytest.approx(1.0)


PRIOR = np.array(COUNTS) / 11


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("recipe", "prior"), [(Recipe(tau=1.0), PRIOR), (Recipe(), PRIOR), (Recipe(balanced=True), np.full(3, 1 / 3))]
)
def test_a_dose_is_a_share_of_the_draws_and_the_rest_are_as_without_it(
    recipe: Recipe, prior: np.ndarray, fraction: float
) -> None:
    plan = arm("synthetic", recipe, fraction).build(material(), seed=3)
    added = np.asarray(pixels(plan)) >= 100
    draw, targets = plan.draw.numpy(), plan.targets.numpy()
    assert plan.n_added == added.sum() and not added[: len(added) - plan.n_added].any()
    np.testing.assert_allclose(np.bincount(targets, draw * ~added), (1 - fraction) * prior)
    np.testing.assert_allclose(np.bincount(targets, draw * added), [0.0, fraction / 2, fraction / 2], atol=1e-12)
    assert all(len(np.unique(draw[(targets == c) & part].round(12))) < 2 for c in range(3) for part in (added, ~added))
    without = Arm("x", recipe).build(material(), 3)
    assert torch.equal(plan.offset, without.offset) and torch.equal(plan.margin, without.margin)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_same_network_is_best_for_added_rows_and_for_the_others(tau: float) -> None:
    """f = log p(x | y) + log rho: under each part's offset, softmax(f + o) is the posterior at that part's prior."""
    plan = arm("synthetic", Recipe(tau=tau)).build(material([4, 8, 8]), seed=0)
    likelihood = np.array([0.2, 0.5, 0.9])
    f = np.log(likelihood) + (1 - tau) * np.log(PRIOR)
    for offset, prior in ((plan.offset, PRIOR), (plan.added_offset, np.full(3, 1 / 3))):
        posterior = np.exp(f + offset.numpy().astype(float))
        np.testing.assert_allclose(posterior / posterior.sum(), likelihood * prior / (likelihood * prior).sum(), rtol=1e-5)
    np.testing.assert_array_equal(plan.offsets(plan)[:11], plan.offset.expand(11, 3))
    np.testing.assert_array_equal(plan.offsets(plan)[11:], plan.added_offset.expand(20, 3))


def test_a_class_with_added_rows_alone_is_as_frequent_as_one_of_one_row() -> None:
    stuff = scattered([8, 3, 0], (0, 2, 5))
    plan = arm("synthetic", Recipe()).build(stuff, 0)
    np.testing.assert_allclose(plan.added_offset[1:].numpy(), np.log(0.5) - np.log(np.array([3, 1]) / 11), rtol=1e-5)
    assert plan.added_offset[0] == plan.offset[2] == arms.NEVER  # the pool has no row of class 0, the real rows none of class 2


def test_soft_labels_are_the_teachers_opinion_at_the_prior_of_added_rows() -> None:
    stuff = judged(material())
    ours, again = (arm(name, Recipe(tau=1.0), labels="soft").build(stuff, seed=2) for name in ("synthetic", "replay"))
    assert not ours.soft_labels[:11].any() and not again.soft_labels[:11].any()
    assert stuff.pool_soft_labels is not None and stuff.augmented_soft_labels is not None
    np.testing.assert_allclose(ours.soft_labels[11:], stuff.pool_soft_labels, rtol=1e-6)
    # The pool has 8 rows of class 1 and 8 of class 2, of which the moved images have two each.
    assert pixels(again)[11:] == [152, 153] * 4 + [154, 155] * 4
    np.testing.assert_allclose(again.soft_labels[11:], stuff.augmented_soft_labels[[2, 3] * 4 + [4, 5] * 4], rtol=1e-6)
    assert torch.equal(again.targets, ours.targets) and torch.equal(again.draw, ours.draw)
    for tau in (0.0, 1.0):
        plan = arm("synthetic", Recipe(tau=tau), labels="soft").build(stuff, seed=2)
        soft = plan.soft_targets(plan.offsets(plan))
        assert torch.equal(soft[:11], torch.nn.functional.one_hot(plan.targets[:11], 3).float())
        expected = stuff.pool_soft_labels * np.exp(plan.added_offset.numpy())
        np.testing.assert_allclose(soft[11:], expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_a_student_neither_moves_nor_mixes() -> None:
    recipe, stuff = recipes(CONFIG)["cutmix+logit_adjustment"], judged(material())
    for name in ("synthetic", "synthetic_unfiltered", "replay"):
        plan, hard = (arm(name, recipe, labels=kind).build(stuff, 0) for kind in ("soft", "hard"))
        assert (plan.transform, plan.mix) == ("none", "none") and (hard.transform, hard.mix) == ("affine", "cutmix")
    for name, fraction in (("synthetic", 0.0), ("synthetic_only", 0.6)):
        plan = arm(name, recipe, fraction=fraction, labels="soft").build(stuff, 0)
        assert (plan.transform, plan.mix) == ("affine", "cutmix")


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_a_student_has_the_prior_that_its_teacher_ended_with(name: str) -> None:
    """The f that is best for real rows is the same, up to a constant: log p(x | y) + log rho, rho = prior / e^offset."""
    recipe = recipes(CONFIG)[name]
    taught, plan = Arm("x", recipe.student()).build(material(), 0), Arm("x", recipe).build(material(), 0)
    end = plan.deferred or plan

    def rho(part: TrainingPlan | arms.DeferredSchedule, targets: torch.Tensor) -> np.ndarray:
        mass = np.bincount(targets, (part.draw * part.weights).numpy(), 3) / np.exp(part.offset.numpy())
        return mass / mass.sum()

    np.testing.assert_allclose(rho(taught, taught.targets), rho(end, plan.targets), rtol=1e-5)
    assert (taught.deferred, taught.cosine, taught.margin.any().item()) == (None, None, False)


DISTILLED = replace(recipes(CONFIG)["cutmix+logit_adjustment"].student(), distilled=0.4)


def test_self_distillation_gives_a_share_of_the_draws_to_moved_images_with_opinions() -> None:
    stuff = judged(material())
    plan = Arm(SELF_DISTILLATION, DISTILLED).build(stuff, 0)
    assert pixels(plan) == [*range(11), *range(150, 156)] and plan.n_added == 6
    np.testing.assert_allclose(plan.soft_labels[11:], stuff.augmented_soft_labels, rtol=1e-6)
    np.testing.assert_allclose(plan.draw, [0.6 / 11] * 11 + [0.4 / 6] * 6)
    np.testing.assert_allclose(plan.added_offset, np.log(1 / 3), rtol=1e-6)
    assert (plan.transform, plan.mix) == ("none", "none") and not plan.soft_labels[:11].any()


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_synthetic_images_are_added_to_self_distillation_beside_its_moved_images(labels: arms.Labels) -> None:
    stuff = judged(material([8, 8, 0]))
    plan = arm("synthetic", DISTILLED, fraction=0.25, labels=labels).build(stuff, 0)
    shares = [float(part.sum()) for part in (plan.draw[:11], plan.draw[11:17], plan.draw[17:])]
    assert shares == pytest.approx([0.75 * 0.6, 0.75 * 0.4, 0.25]) and plan.n_added == 6 + 16
    # The prior of all that was added: moved images of three classes, synthetic ones of two.
    prior = 0.3 * np.full(3, 1 / 3) + 0.25 * np.array([0.5, 0.5, 0])
    np.testing.assert_allclose(plan.added_offset, np.log(prior / prior.sum()), rtol=1e-6)
    mass = np.bincount(plan.targets[11:], plan.draw[11:])
    np.testing.assert_allclose(plan.added_offset, np.log(mass / mass.sum()), rtol=1e-6)
    assert plan.soft_labels[11:17].any() and bool(plan.soft_labels[17:].any()) == (labels == "soft")


def test_without_an_accepted_image_the_student_is_self_distillation_itself() -> None:
    stuff = judged(material(accepted=np.zeros(16, bool)))
    ours = arm("synthetic", DISTILLED, fraction=0.25, labels="soft").build(stuff, 0)
    assert same(ours, Arm(SELF_DISTILLATION, DISTILLED).build(stuff, 0))


def test_synthetic_images_alone_are_treated_as_the_teacher_treats_its_own() -> None:
    own = recipes(CONFIG)["cutmix+logit_adjustment"]
    only = synthetic_arms(DISTILLED, synthetic_fraction=0.25, labels="soft", alone=own)["synthetic_only"].build(
        judged(material()), 0
    )
    assert (only.transform, only.mix) == ("affine", "cutmix") and min(pixels(only)) >= 100 and max(pixels(only)) < 116


def test_arms_of_shuffled_labels_alone_have_no_opinions() -> None:
    assert all(a.labels == "hard" for a in arms.null_arms(Recipe(), synthetic_fraction=0.3).values())
    assert not arm("synthetic_only", labels="soft").build(judged(material()), 0).soft_labels.any()


@pytest.mark.parametrize("name", ["augment+logit_adjustment", "ldam_drw", "crt", "smote"])
def test_dose_zero_is_the_recipe_itself(name: str) -> None:
    recipe = recipes(CONFIG)[name]
    ours, real = (
        arm("synthetic", recipe, fraction=0.0, labels="soft").build(judged(material()), 5),
        Arm("x", recipe).build(material(), 5),
    )
    assert same(ours, real)


def test_rejected_rows_enter_the_unfiltered_arm_alone() -> None:
    accepted = np.arange(16) % 2 == 0
    stuff = material(accepted=accepted)
    rejected = set((100 + np.flatnonzero(~accepted)).tolist())
    for name, expected in (("synthetic", False), ("synthetic_only", False), ("replay", False), ("synthetic_unfiltered", True)):
        assert bool(rejected & set(pixels(arm(name).build(stuff, seed=0)))) is expected, name


def test_replay_adds_train_images_in_the_same_classes_numbers_and_weights() -> None:
    stuff = material()
    synthetic, replay = (arm(name).build(stuff, seed=2) for name in ("synthetic", "replay"))
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
        a.build(material(), seed=2) for a in (arm("synthetic"), arms.null_arms(Recipe(), synthetic_fraction=0.6)["shuffled"])
    )
    assert torch.equal(kept.images, shuffled.images) and torch.equal(kept.targets[:11], shuffled.targets[:11])
    assert torch.equal(kept.targets.bincount(), shuffled.targets.bincount())
    assert not torch.equal(kept.targets, shuffled.targets)


def test_the_control_without_a_dose_shuffles_half_of_the_draws() -> None:
    null = arms.null_arms(Recipe(), synthetic_fraction=0.0)
    assert null["shuffled"].synthetic_fraction == 0.5 and null["aa_control"].adds == "nothing"
    assert arms.null_arms(Recipe(), synthetic_fraction=0.3)["shuffled"].synthetic_fraction == 0.3


def test_replay_takes_the_sources_of_the_row_where_they_are_known() -> None:
    sources: list[object] = [["d-train-7", "d-train-0"]] * 8 + [["d-train-10"]] * 8
    plan = arm("replay").build(material(sources=sources), seed=2)
    assert set(pixels(plan)[11:]) == {7, 10}


def test_synthetic_only_holds_no_real_row() -> None:
    plan = arm("synthetic_only").build(material([8, 8, 2]), seed=0)
    assert min(pixels(plan)) >= 100
    assert torch.bincount(plan.targets).tolist() == [8, 8, 2]
    np.testing.assert_allclose(plan.draw.numpy(), 1 / 18)


def test_a_class_without_rows_has_no_offset() -> None:
    plan = arm("synthetic_only", Recipe(tau=1.0)).build(material([0, 4, 4]), seed=0)
    assert plan.offset.tolist() == pytest.approx([0.0, np.log(0.5), np.log(0.5)])


def test_each_arm_that_settings_may_name_has_a_recipe() -> None:
    assert {*recipes(CONFIG), SELF_DISTILLATION} == set(REAL_ARMS)


def test_effective_numbers_by_the_formula() -> None:
    plan = Arm("x", Recipe(beta=0.9)).build(material(), 0)
    factor = np.array([0.1 / (1 - 0.9**n) for n in COUNTS])
    assert factor[2] == pytest.approx(1 / 1.9)  # two rows: 1 + beta
    factor /= factor.mean()
    np.testing.assert_allclose(plan.weights.numpy(), np.repeat(factor, COUNTS), rtol=1e-6)
    np.testing.assert_allclose(plan.draw.numpy(), 1 / 11)


def test_effective_numbers_lie_between_no_weights_and_one_over_the_count() -> None:
    none, inverse = (Arm("x", Recipe(beta=beta)).build(material(), 0).weights.numpy() for beta in (0.0, 1 - 1e-9))
    np.testing.assert_allclose(none, 1.0)
    mass = np.bincount(np.repeat([0, 1, 2], COUNTS), inverse)
    np.testing.assert_allclose(mass, mass[0], rtol=1e-5)


def test_effective_numbers_and_margins_count_the_rows_before_any_is_added() -> None:
    recipe = Recipe(beta=0.9, margin=0.5, cosine=10.0)
    factor = np.array([0.1 / (1 - 0.9**n) for n in COUNTS])
    for name in ("synthetic", "replay"):
        plan = arm(name, recipe).build(material(), 0)
        np.testing.assert_allclose(plan.weights.numpy()[:11], (factor / factor.mean())[plan.targets[:11]], rtol=1e-6)
        assert bool((plan.weights[11:] == 1).all())
        np.testing.assert_allclose(plan.margin.numpy(), 10 * 0.5 * (2 / np.array(COUNTS)) ** 0.25, rtol=1e-6)


def test_margins_by_hand() -> None:
    # 16 rows and 1: the fourth root of 16 is 2.
    stuff = TrainingData.of(rows(images(17), labels([16, 1]), "train"), CLASSES[:3])
    margin = Arm("x", Recipe(margin=0.5, cosine=8.0)).build(stuff, 0).margin
    assert margin.tolist() == [2.0, 4.0, 0.0]  # no row, no margin
    assert Arm("x", Recipe(margin=0.5)).build(stuff, 0).margin.tolist() == [0.25, 0.5, 0.0]
    assert Arm("x", Recipe()).build(stuff, 0).margin.tolist() == [0.0] * 3


@pytest.mark.parametrize(("balanced", "beta"), [(True, None), (False, 0.9)])
def test_a_late_phase_is_the_plan_of_its_own_recipe(balanced: bool, beta: float | None) -> None:
    late = DeferredRecipe(0.25, balanced=balanced, beta=beta, head_only=balanced)
    whole = arm("synthetic", Recipe(tau=1.5, deferred=late)).build(material(), 0)
    first, second = (
        arm("synthetic", recipe).build(material(), 0)
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
def test_the_late_phase_takes_its_share_of_the_steps(steps: int, share: float, switch: int) -> None:
    plan = Arm("x", Recipe(deferred=DeferredRecipe(share))).build(material(), 0)
    assert plan.switch(steps) == switch
    assert replace(plan, deferred=None).switch(steps) == steps


def test_the_shipped_recipes_are_those_of_their_papers() -> None:
    known, config = recipes(CONFIG), CONFIG
    augment = Recipe(transform=config.augment)
    assert known["crt"] == replace(augment, deferred=DeferredRecipe(config.crt_share, balanced=True, head_only=True))
    drw = DeferredRecipe(config.drw_share, beta=config.class_balanced_beta)
    assert known["ldam_drw"] == replace(augment, margin=config.ldam_margin, cosine=config.cosine_scale, deferred=drw)
    assert known["class_balanced"] == replace(augment, beta=config.class_balanced_beta)
    assert known["cutmix+logit_adjustment"] == replace(known["cutmix"], tau=config.tau)
    assert known["augment+logit_adjustment_strong"].tau == config.tau_strong > config.tau


def scattered(counts: list[int], pool: tuple[int, ...] = (0, 0, 0)) -> TrainingData:
    """Random images, several channels."""
    r, none = np.random.default_rng(0), np.zeros(0, np.int64)
    y, p = np.repeat(np.arange(3), counts), np.repeat(np.arange(3), pool)
    real, made = (r.integers(0, 256, (len(t), 3, 4, 4), dtype=np.uint8) for t in (y, p))
    return TrainingData(3, real, y, made, p, np.ones(len(p), bool), none, np.zeros(len(p) + 1, np.int64))


def flat(images: torch.Tensor) -> np.ndarray:
    return images.numpy().reshape(len(images), -1).astype(float)


SMOTE = Recipe(neighbours=2)


@pytest.mark.parametrize("counts", [[9, 5, 3], [9, 2, 1], [12, 0, 4]])
def test_smote_fills_with_points_between_a_row_and_one_of_its_nearest_of_the_class(counts: list[int]) -> None:
    stuff = scattered(counts)
    plan = Arm("smote", SMOTE).build(stuff, seed=1)
    n = sum(counts)
    assert torch.bincount(plan.targets, minlength=3).tolist() == [max(counts) if c else 0 for c in counts]
    assert torch.equal(plan.images[:n], torch.from_numpy(stuff.images))
    for point, c in zip(flat(plan.images[n:]), plan.targets[n:].tolist(), strict=True):
        own = flat(plan.images[:n])[stuff.targets == c]
        if len(own) == 1:
            np.testing.assert_array_equal(point, own[0])
            continue
        distances = np.linalg.norm(own[:, None] - own, axis=-1)
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argsort(1)[:, : min(2, len(own) - 1)]
        off = []  # of each segment between a row and a neighbour
        for a, others in zip(own, nearest, strict=True):
            for b in own[others]:
                u = np.clip((point - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
                off.append(np.abs(point - (a + u * (b - a))).max())
        assert min(off) < 1.5  # the point is rounded, and u found from it


def test_smote_uses_each_row_as_often_as_the_others_and_the_seed_decides() -> None:
    stuff = scattered([9, 3, 1])
    base = arms._smote(stuff.images, stuff.targets, 3, 2, seed=1)[1]
    assert np.bincount(base, minlength=13).tolist() == [0] * 9 + [2, 2, 2] + [8]
    plans = [Arm("smote", SMOTE).build(stuff, seed) for seed in (1, 1, 2)]
    assert same(plans[0], plans[1]) and not same(plans[0], plans[2])
    # Points that differ from their ends: u is not 0 or 1 alone.
    assert len(np.unique(flat(plans[0].images[13:19]), axis=0)) == 6


def test_smote_makes_points_between_real_rows_and_they_count_as_such() -> None:
    stuff = scattered([8, 3, 1], (0, 2, 5))
    plan = arm("synthetic", SMOTE, 0.5).build(stuff, 0)
    assert torch.bincount(plan.targets).tolist() == [8, 8 + 2, 8 + 5]
    assert torch.equal(plan.targets[:24].bincount(), torch.tensor([8, 8, 8]))  # added rows stand last
    np.testing.assert_allclose(torch.bincount(plan.targets[:24], plan.draw[:24]).numpy(), [1 / 6] * 3)
    np.testing.assert_allclose(torch.bincount(plan.targets[24:], plan.draw[24:]).numpy(), [0, 1 / 4, 1 / 4])
    real = flat(plan.images[8:11])
    low, high = real.min(0), real.max(0)
    assert all(((low <= point) & (point <= high)).all() for point in flat(plan.images[12:17]))


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_synthetic_and_replay_differ_in_the_added_images_alone(name: str) -> None:
    recipe = recipes(CONFIG)[name]
    ours, control = (arm(kind, recipe, 0.5).build(scattered([8, 3, 2], (0, 9, 9)), 3) for kind in ("synthetic", "replay"))
    assert same(replace(ours, images=control.images), control)
    differs = (ours.images != control.images).flatten(1).any(1)
    assert differs[-18:].all() and int(differs.sum()) == 18


@pytest.mark.parametrize("name", list(recipes(CONFIG)))
def test_every_recipe_works_without_real_rows_and_with_a_class_without_rows(name: str) -> None:
    stuff = scattered([8, 3, 2], (0, 4, 1))
    plan = arm("synthetic_only", recipes(CONFIG)[name]).build(stuff, 3)
    for part in (plan, plan.deferred or plan):
        assert float(part.draw.sum()) == pytest.approx(1.0)
        assert bool((part.weights > 0).all() and part.weights.isfinite().all() and part.offset.isfinite().all())
    assert bool(plan.margin.isfinite().all()) and not (plan.targets == 0).any()


# The learning curve: real rows that scarcity left out, as if it had not.

HELD = [2, 7, 9]


def reserve(split: str = "reserve", origin: str = "real", counts: list[int] = HELD) -> object:
    made = rows(images(sum(counts), 100), labels(counts), split, origin, "r")
    return made.take(np.random.default_rng(1).permutation(len(made)))


def with_reserve(most: int = 8, seed: int = 0) -> TrainingData:
    return TrainingData.of(train(), CLASSES[:3]).with_reserve(reserve(), CLASSES[:3], most=most, seed=seed)


def extra_rows(m: int, stuff: TrainingData, recipe: Recipe = Recipe()) -> list[tuple[int, int]]:  # noqa: B008
    """(class, grey level) of the rows that an arm of the curve has besides the train rows."""
    plan = Arm("curve", recipe).build(stuff.enlarged(m), 0)
    n = sum(COUNTS)
    assert pixels(plan)[:n] == list(range(n)) and plan.n_added == 0
    return list(zip(plan.targets[n:].tolist(), pixels(plan)[n:], strict=True))


def test_the_rows_of_a_short_curve_are_among_those_of_a_longer_one() -> None:
    stuff = with_reserve()
    held = [extra_rows(m, stuff) for m in (1, 3, 8)]
    assert [np.bincount([c for c, _ in found], minlength=3).tolist() for found in held] == [[1, 1, 1], [2, 3, 3], [2, 7, 8]]
    assert set(held[0]) < set(held[1]) < set(held[2]) and len(set(held[2])) == 17
    first = np.cumsum([0, *HELD]) + 100
    assert all(first[c] <= level < first[c + 1] for c, level in held[2])  # each with its own label
    assert stuff.reserve_counts(3).tolist() == [2, 3, 3]
    # What is held for a longer curve does not change a shorter one; another seed does.
    assert extra_rows(3, with_reserve(most=3)) == held[1] != extra_rows(3, with_reserve(seed=1))
    assert held[1] != [(c, first[c] + i) for c, n in enumerate([2, 3, 3]) for i in range(n)]  # drawn, not the first ones


def test_the_enlarged_rows_are_the_train_rows_of_which_priors_and_margins_are_taken() -> None:
    stuff, n = with_reserve(), np.array(COUNTS) + np.array([2, 4, 4])
    plan = Arm("curve", Recipe(tau=1.0, margin=0.5)).build(stuff.enlarged(4), 0)
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
    stuff = TrainingData.of(train(), CLASSES[:3]).with_reserve(reserve(counts=[0, 0, 0]), CLASSES[:3], most=4, seed=0)
    assert stuff.reserve_counts(4).tolist() == [0, 0, 0] and extra_rows(4, stuff) == []
