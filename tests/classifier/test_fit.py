"""One training run: the loss in closed form, pairing of seeds, weights on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import digits_project
from pipeline.arms import Arm, DeferredRecipe, Recipe, TrainingData, TrainingPlan, recipes
from pipeline.arms.recipes import Mix
from pipeline.classifier import networks, train, transforms
from pipeline.classifier.losses import adjusted_cross_entropy
from pipeline.errors import DataError, Diverged
from pipeline.runtime import training

CONFIG = digits_project.params(
    classifier={"network": "small", "steps": 200, "batch_images": 32, "lr": 0.01, "weight_decay": 0.0}
).in_mode("scratch")
COUNTS = np.array([24, 6, 2])


def blank(pool: tuple[int, ...] = (0, 0, 0)) -> TrainingData:
    """Images that say nothing of their class."""
    y, p = np.repeat(np.arange(3), COUNTS), np.repeat(np.arange(3), pool)
    none = np.zeros(0, np.int64)
    grey = [np.full((len(t), 1, 8, 8), 128, np.uint8) for t in (y, p)]
    return TrainingData(3, grey[0], y, grey[1], p, np.ones(len(p), bool), none, np.zeros(len(p) + 1, np.int64))


def quiet(_: int) -> None:
    pass


def fitted(plan: TrainingPlan, **settings: object) -> np.ndarray:
    network = train.fit(plan, CONFIG.model_copy(update=settings), seed=0, progress=quiet)
    return train.predict(network, plan.images[:1])[0]


def test_loss_by_hand() -> None:
    z, o = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.log(torch.tensor([0.9, 0.1]))
    t = torch.tensor([[0.3, 0.0], [0.5, 0.5]])
    logp = (z + o) - (z + o).exp().sum(1, keepdim=True).log()
    expected = -(t * logp).sum() / 2 / 0.65
    assert float(adjusted_cross_entropy(z, t, o, torch.zeros(2), 0.65)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(), COUNTS / 32),
        (Recipe(tau=1.0), np.full(3, 1 / 3)),
        (Recipe(balanced=True), np.full(3, 1 / 3)),
        (Recipe(tau=0.5), np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()),
    ],
)
def test_on_images_that_say_nothing_the_prior_is_learned_less_the_adjustment(recipe: Recipe, expected: np.ndarray) -> None:
    np.testing.assert_allclose(fitted(Arm("x", recipe).build(blank(), 0)), expected, atol=0.03)


@pytest.mark.parametrize(("tau", "expected"), [(0.0, COUNTS / 32), (1.0, np.full(3, 1 / 3))])
def test_added_rows_shift_no_prior(tau: float, expected: np.ndarray) -> None:
    arm = Arm("x", Recipe(tau=tau), "accepted", synthetic_fraction=0.6)
    np.testing.assert_allclose(fitted(arm.build(blank((0, 18, 22)), 0)), expected, atol=0.03)


def test_a_teachers_soft_labels_are_learned_whatever_the_adjustment() -> None:
    p = np.array([0.2, 0.3, 0.5])
    for tau in (0.0, 1.0):
        data = blank((10, 10, 10))
        data = replace(data, pool_soft_labels=np.tile(p, (30, 1)))
        arm = Arm("x", Recipe(tau=tau), "accepted", synthetic_fraction=1.0, labels="soft")
        np.testing.assert_allclose(fitted(arm.build(data, 0)), p, atol=0.03)


def test_each_row_has_the_offset_of_its_part() -> None:
    """Rows are sorted by class for the draw: black real rows and white added ones must each keep their own prior's offset."""
    data = blank((10, 10, 10))
    data = replace(data, images=np.zeros_like(data.images), pool_images=np.full_like(data.pool_images, 255))
    plan = Arm("x", Recipe(tau=0.0), "accepted", synthetic_fraction=0.5).build(data, 0)
    network = train.fit(plan, CONFIG, seed=0, progress=quiet)
    both = train.predict(network, torch.stack([plan.images[0], plan.images[-1]]))
    np.testing.assert_allclose(both, np.tile(COUNTS / 32, (2, 1)), atol=0.04)


@pytest.mark.parametrize("recipe", [Recipe(mix="mixup", mix_alpha=0.4), Recipe(mix="cutmix", mix_alpha=1.0)])
def test_mixing_keeps_the_prior(recipe: Recipe) -> None:
    np.testing.assert_allclose(fitted(Arm("x", recipe).build(blank(), 0)), COUNTS / 32, atol=0.03)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("pool", [(9, 9, 9), (0, 9, 9), (9, 0, 0)])
def test_a_class_of_which_nothing_is_added_keeps_its_place_where_pairs_are_mixed(mix: Mix, pool: tuple[int, ...]) -> None:
    arm = Arm("x", Recipe(tau=1.0, mix=mix, mix_alpha=1.0), "accepted", synthetic_fraction=0.5)
    np.testing.assert_allclose(fitted(arm.build(blank(pool), 0)), np.full(3, 1 / 3), atol=0.05)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_targets_are_mixed_as_images_are(mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black is class 0 and white class 1, so that a mixed image is as grey as its target says."""
    black_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8).contiguous()
    none, half = torch.zeros(2), torch.full((2,), 0.5).double()
    plan = TrainingPlan(
        black_white, torch.tensor([0, 1]), torch.zeros(2, 2), torch.tensor([1.0, 0.5]), half, "none", none, none, 0, none,
        mix=mix, mix_alpha=1.0,
    )  # fmt: skip
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    network.register_forward_pre_hook(lambda _, x: seen.append((x[0].mean((1, 2, 3)), torch.empty(0))))

    def spy(logits: torch.Tensor, targets: torch.Tensor, *_: object) -> torch.Tensor:
        seen[-1] = (seen[-1][0], targets)
        return logits.square().mean()

    asked: list[tuple[object, ...]] = []
    original = train.numpy_rng

    def numpy_rng(*names: object) -> np.random.Generator:
        asked.append(names)
        return original(*names)

    monkeypatch.setattr(train, "numpy_rng", numpy_rng)
    monkeypatch.setattr(train, "initial", lambda *_: network)
    monkeypatch.setattr(train, "adjusted_cross_entropy", spy)
    train.fit(plan, CONFIG.model_copy(update={"steps": 5}), seed=0, progress=quiet)
    assert asked == [(0, mix, k) for k in range(5)]  # the draws of a step are those of the seed and the step
    for greys, targets in seen:
        white = (greys + 1) / 2
        torch.testing.assert_close(targets, torch.stack([1 - white, 0.5 * white], 1), atol=1e-5, rtol=0)
        assert float(white.std()) > 0.1 and len(white.unique()) > 10


def test_draws_have_their_probabilities_and_are_stratified() -> None:
    draw = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    counts = torch.stack([torch.bincount(train.draw(draw.cumsum(0), 10, 0, k), minlength=3) for k in range(400)]).double()
    np.testing.assert_allclose(counts.mean(0) / 10, draw, atol=0.02)
    assert counts[:, 0].unique().tolist() == [5.0]


def test_a_row_without_probability_is_never_drawn() -> None:
    cumulative = torch.tensor([0.0, 0.5, 0.5, 0.5], dtype=torch.float64).cumsum(0) * 0 + torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert train.draw(cumulative, 100, 0, 0).unique().tolist() == [1]


def test_seeds_are_paired_over_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    original = transforms.apply

    def spy(name: str, images: torch.Tensor, flips: str, rng: torch.Generator) -> torch.Tensor:
        seen[name].append(images)
        return original(name, images, flips, rng)

    monkeypatch.setattr(transforms, "apply", spy)
    plan = Arm("x", Recipe()).build(blank(), 0)
    plan = replace(plan, images=torch.randint(0, 256, plan.images.shape, dtype=torch.uint8, generator=torch.Generator()))
    for name in ("none", "affine"):
        seen[name] = []
        train.fit(replace(plan, transform=name), CONFIG.model_copy(update={"steps": 3}), 7, progress=quiet)
    assert all(torch.equal(a, b) for a, b in zip(seen["none"], seen["affine"], strict=True))
    first, again, other = (train.initial(CONFIG, (1, 8, 8), 3, s).state_dict() for s in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_no_global_stream_is_touched() -> None:
    before = torch.get_rng_state()
    train.fit(
        Arm("x", Recipe(mix="mixup", mix_alpha=0.4, transform="affine", deferred=DeferredRecipe(0.5, head_only=True))).build(
            blank(), 0
        ),
        CONFIG.model_copy(update={"steps": 2}),
        0,
        progress=quiet,
    )
    assert torch.equal(before, torch.get_rng_state())


def test_weights_on_disk_predict_the_same(tmp_path: Path) -> None:
    plan = Arm("x", Recipe()).build(blank(), 0)
    config = CONFIG.model_copy(update={"steps": 2})
    network = train.fit(plan, config, 0, progress=quiet)
    train.save(network, tmp_path / "0.safetensors", config, (1, 8, 8), 3, validation=0.5)
    loaded = train.load(tmp_path / "0.safetensors")
    np.testing.assert_array_equal(train.predict(network, plan.images), train.predict(loaded, plan.images))
    first = (tmp_path / "0.safetensors").read_bytes()
    train.save(network, tmp_path / "0.safetensors", config, (1, 8, 8), 3, validation=0.5)
    assert (tmp_path / "0.safetensors").read_bytes() == first
    (tmp_path / "0.safetensors").write_bytes(first[:-7])
    with pytest.raises(DataError):
        train.load(tmp_path / "0.safetensors")


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    plan = Arm("x", Recipe()).build(blank(), 0)
    with pytest.raises(Diverged):
        train.fit(replace(plan, weights=plan.weights * float("nan")), CONFIG, 0, progress=quiet)


@pytest.mark.fault(5, "classifiers, stopped")
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Arm("x", Recipe(transform="affine", mix="mixup", mix_alpha=0.4)).build(blank(), 0)
    config = CONFIG.model_copy(update={"steps": 12})
    whole = train.fit(plan, config, 0, progress=quiet).state_dict()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    calls = 0

    def stop(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(plan, config, 0, folder=tmp_path, progress=stop)
    rest = train.fit(plan, config, 0, folder=tmp_path, progress=quiet).state_dict()
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.parametrize(("size", "kind"), [(8, "Small"), (63, "Small"), (64, "ResNet"), (128, "ResNet")])
def test_auto_takes_the_larger_network_from_64_pixels(size: int, kind: str) -> None:
    config = CONFIG.model_copy(update={"network": "auto"})
    network = networks.build(config, (3, size, size), 4)
    assert type(network).__name__ == kind
    if kind == "ResNet":
        x = torch.zeros(2, 3, size, size)
        x[1] = 1.0
        with torch.inference_mode():
            both, one = network.eval()(x), network(x[:1])
        torch.testing.assert_close(both[:1], one, atol=1e-4, rtol=1e-3)


def test_margins_by_hand() -> None:
    z, m, o = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([0.2, 0.4, 0.8]), torch.zeros(3)
    # Cao et al. (2019): the label's logit less its margin, the others as they are.
    expected = -np.log(np.exp(-1.4) / (np.exp(1.0) + np.exp(-1.4) + np.exp(0.5)))
    hard = torch.tensor([[0.0, 1.0, 0.0]])
    assert float(adjusted_cross_entropy(z, hard, o, m, 1.0)) == pytest.approx(expected, rel=1e-6)
    # A weight multiplies the loss and leaves the margin as it is.
    assert float(adjusted_cross_entropy(z, 0.3 * hard, o, m, 1.0)) == pytest.approx(0.3 * expected, rel=1e-6)
    # A soft target takes each label's margin by its share.
    shifted = np.exp([0.75 * -0.2 + 1.0, 0.25 * -0.4 - 1.0, 0.5])
    soft = -(np.array([0.75, 0.25]) * np.log(shifted[:2] / shifted.sum())).sum()
    assert float(adjusted_cross_entropy(z, torch.tensor([[1.5, 0.5, 0.0]]), o, m, 2.0)) == pytest.approx(soft, rel=1e-6)


def test_a_cosine_layer_sees_angles_alone() -> None:
    r = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 7, generator=r), torch.randn(3, 7, generator=r)
    layer = networks.Cosine(weight, 20.0)
    expected = 20 * torch.nn.functional.cosine_similarity(x[:, None], weight[None], dim=2)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(1000 * x), expected)
    layer.weight.data *= torch.tensor([[0.1], [3.0], [50.0]])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("size", [8, 64])
def test_a_cosine_layer_leaves_the_body_and_its_own_first_weights_as_they_are(size: int) -> None:
    config = CONFIG.model_copy(update={"network": "auto"})
    plain, cosine = (train.initial(config, (1, size, size), 3, 7, scale) for scale in (None, 20.0))
    assert (networks.cosine_scale(plain), networks.cosine_scale(cosine)) == (None, 20.0)
    last = networks.head_name(plain)
    a, b = plain.state_dict(), cosine.state_dict()
    assert set(a) - set(b) == {f"{last}.bias"}
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_cosine_network_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 2})
    plan = Arm("x", Recipe(cosine=20.0)).build(blank(), 0)
    network = train.fit(plan, config, 0, progress=quiet)
    train.save(network, tmp_path / "0.safetensors", config, (1, 8, 8), 3)
    loaded = train.load(tmp_path / "0.safetensors")
    assert networks.cosine_scale(loaded) == 20.0
    np.testing.assert_array_equal(train.predict(network, plan.images), train.predict(loaded, plan.images))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(beta=0.9), COUNTS / (1 - 0.9**COUNTS)),
        (Recipe(beta=0.9, tau=1.0), np.ones(3)),
        (Recipe(deferred=DeferredRecipe(0.5, balanced=True, head_only=True)), np.ones(3)),
        (Recipe(deferred=DeferredRecipe(0.5, beta=0.9)), COUNTS / (1 - 0.9**COUNTS)),
    ],
)
def test_on_images_that_say_nothing_the_weighed_prior_is_learned(recipe: Recipe, expected: np.ndarray) -> None:
    np.testing.assert_allclose(fitted(Arm("x", recipe).build(blank(), 0)), expected / expected.sum(), atol=0.03)


def noisy(recipe: Recipe) -> TrainingPlan:
    """A plan of random images."""
    plan = Arm("x", recipe).build(blank(), 0)
    return replace(plan, images=torch.randint(0, 256, plan.images.shape, dtype=torch.uint8, generator=torch.Generator()))


CRT = Recipe(transform="affine", deferred=DeferredRecipe(0.25, balanced=True, head_only=True))
DRW = Recipe(transform="affine", margin=0.5, cosine=20.0, deferred=DeferredRecipe(0.25, beta=0.9))
SHORT = CONFIG.model_copy(update={"steps": 12})


@pytest.mark.parametrize("cosine", [None, 20.0])
def test_a_deferred_phase_of_the_last_layer_leaves_the_body_as_the_first_phase_made_it(cosine: float | None) -> None:
    plan = noisy(replace(CRT, cosine=cosine))
    both = train.fit(plan, SHORT, 3, progress=quiet).state_dict()
    first = train.fit(replace(plan, deferred=None), SHORT.model_copy(update={"steps": 9}), 3, progress=quiet).state_dict()
    body = [name for name in both if name.startswith("body")]
    assert body and all(torch.equal(both[name], first[name]) for name in body)
    assert all(not torch.equal(both[name], first[name]) for name in set(both) - set(body))


def test_the_deferred_phase_begins_at_its_step_with_a_fresh_layer_its_draws_and_a_learning_rate_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, seen = noisy(CRT), []
    steps: list[tuple[int, float, int]] = []
    original_draw, original_step = train.draw, training.Learner.step

    def draw(cumulative: torch.Tensor, size: int, seed: int, k: int) -> torch.Tensor:
        seen.append(cumulative)
        return original_draw(cumulative, size, seed, k)

    def step(self: training.Learner, loss: torch.Tensor, k: int) -> float:
        if not k and len(self.parameters) == 2:
            fresh.append(self.network.state_dict()["head.weight"].clone())
        value = original_step(self, loss, k)
        steps.append((len(self.parameters), self.optimiser.param_groups[0]["lr"], k))
        return value

    fresh: list[torch.Tensor] = []
    monkeypatch.setattr(train, "draw", draw)
    monkeypatch.setattr(training.Learner, "step", step)
    train.fit(plan, SHORT, 3, progress=quiet)
    order = torch.argsort(plan.targets, stable=True)
    assert plan.deferred is not None
    early, deferred = plan.draw[order].cumsum(0), plan.deferred.draw[order].cumsum(0)
    assert [torch.equal(c, early) for c in seen] == [True] * 9 + [False] * 3
    assert all(torch.equal(c, deferred) for c in seen[9:])
    assert [k for _, _, k in steps] == [*range(9), 0, 1, 2] and [n for n, _, _ in steps[9:]] == [2] * 3
    rates = [rate for _, rate, _ in steps]
    assert rates[9] == rates[0] == pytest.approx(0.01 / 50)
    assert len(fresh) == 1 and not torch.equal(fresh[0], train.initial(SHORT, (1, 8, 8), 3, 3).state_dict()["head.weight"])
    other_arm = noisy(replace(CRT, tau=1.0, transform="none"))
    train.fit(other_arm, SHORT, 3, progress=quiet)
    assert torch.equal(*fresh)  # paired over arms


def test_deferred_weights_change_at_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, seen, scales = noisy(DRW), [], []
    original = train.adjusted_cross_entropy

    def spy(logits: torch.Tensor, targets: torch.Tensor, *rest: object) -> torch.Tensor:
        classes = targets.argmax(1)
        seen.append({c: targets[classes == c].sum(1) for c in classes.unique().tolist()})
        assert torch.equal(rest[1], plan.margin)
        scales.append(rest[2])
        return original(logits, targets, *rest)

    monkeypatch.setattr(train, "adjusted_cross_entropy", spy)
    train.fit(plan, SHORT, 3, progress=quiet)
    assert plan.deferred is not None
    deferred = {c: float(plan.deferred.weights[plan.targets == c][0]) for c in range(3)}
    assert len(set(deferred.values())) == 3
    assert scales == pytest.approx([1.0] * 9 + [float((plan.deferred.draw * plan.deferred.weights).sum())] * 3)
    assert abs(scales[-1] - 1) > 0.1
    for k, found in enumerate(seen):
        for c, weights in found.items():
            assert torch.equal(weights, torch.full_like(weights, 1.0 if k < 9 else deferred[c])), (k, c)


@pytest.mark.parametrize("recipe", [CRT, DRW], ids=["crt", "ldam_drw"])
@pytest.mark.parametrize("killed_after", [5, 9, 10, 11])
@pytest.mark.fault(5, "classifiers of two phases, stopped in either")
def test_a_run_that_was_stopped_in_either_phase_ends_with_the_same_weights(
    recipe: Recipe, killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = noisy(recipe)
    whole = train.fit(plan, SHORT, 0, progress=quiet).state_dict()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    calls = 0

    def stop(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == killed_after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(plan, SHORT, 0, folder=tmp_path, progress=stop)
    steps: list[int] = []
    rest = train.fit(plan, SHORT, 0, folder=tmp_path, progress=steps.append).state_dict()
    assert len(steps) == 12 - killed_after
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.parametrize("size", [8, 64])
def test_only_the_last_layer_moves_in_its_phase_whatever_the_network(size: int) -> None:
    config = CONFIG.model_copy(update={"network": "auto", "steps": 2, "batch_images": 4})
    plan = noisy(Recipe(deferred=DeferredRecipe(1.0, head_only=True)))
    plan = replace(plan, images=plan.images.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3))
    before, after = train.initial(config, (1, size, size), 3, 0), train.fit(plan, config, 0, progress=quiet)
    last, state = networks.head_name(before), after.state_dict()
    moved = {name for name, value in before.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {f"{last}.weight", f"{last}.bias"}


def test_arms_see_the_same_images_and_draws_until_a_deferred_phase_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = transforms.apply

    def spy(name: str, images: torch.Tensor, flips: str, rng: torch.Generator) -> torch.Tensor:
        seen.append((images, original(name, images, flips, rng)))
        return seen[-1][1]

    monkeypatch.setattr(transforms, "apply", spy)

    def batches(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        seen.clear()
        train.fit(noisy(recipes(SHORT)[name]), SHORT, 7, progress=quiet)
        return list(seen)

    expected = batches("augment")
    for name in ("augment+logit_adjustment_strong", "cutmix", "cutmix+logit_adjustment", "class_balanced", "ldam_drw", "crt"):
        pairs = zip(batches(name), expected, strict=True)
        same = [torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in pairs]
        assert same == ([True] * 9 + [False] * 3 if name == "crt" else [True] * 12), name
