"""One training run: the loss in closed form, pairing of seeds, weights on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import training
from pipeline.arms import Arm, Material, Recipe, TrainingPlan
from pipeline.classifier import networks, train, transforms
from pipeline.classifier.losses import adjusted_cross_entropy
from pipeline.config import Classifier
from pipeline.errors import DataError, Diverged

CONFIG = Classifier(
    network="small", width=8, steps=200, batch_images=32, lr=0.01, weight_decay=0.0, augment="affine", mixup_alpha=0.4, tau=1.0
)
COUNTS = np.array([24, 6, 2])


def blank(pool: tuple[int, ...] = (0, 0, 0)) -> Material:
    """Images that say nothing of their class."""
    y, p = np.repeat(np.arange(3), COUNTS), np.repeat(np.arange(3), pool)
    none = np.zeros(0, np.int64)
    grey = [np.full((len(t), 1, 8, 8), 128, np.uint8) for t in (y, p)]
    return Material(3, grey[0], y, grey[1], p, np.ones(len(p), bool), none, np.zeros(len(p) + 1, np.int64))


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
    assert float(adjusted_cross_entropy(z, t, o, 0.65)) == pytest.approx(float(expected), rel=1e-6)


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


@pytest.mark.parametrize(("tau", "expected"), [(0.0, np.array([24, 6 + 4.5, 2 + 5.5]) / 42), (1.0, np.full(3, 1 / 3))])
def test_light_synthetic_rows_shift_the_prior_by_their_weight_and_not_at_all_under_adjustment(
    tau: float, expected: np.ndarray
) -> None:
    arm = Arm("x", Recipe(tau=tau), "accepted", dose=1.0, weight=0.25, fill_to=24)
    np.testing.assert_allclose(fitted(arm.build(blank((0, 18, 22)), 0)), expected, atol=0.03)


def test_mixup_keeps_the_prior() -> None:
    np.testing.assert_allclose(fitted(Arm("x", Recipe(mixup_alpha=0.4)).build(blank(), 0)), COUNTS / 32, atol=0.03)


def test_mixup_mixes_targets_as_it_mixes_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black is class 0 and white class 1, so that a mixed image is as grey as its target says."""
    black_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8).contiguous()
    plan = TrainingPlan(
        black_white, torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), torch.full((2,), 0.5).double(), "none", torch.zeros(2), 1.0
    )
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    network.register_forward_pre_hook(lambda _, x: seen.append((x[0].mean((1, 2, 3)), torch.empty(0))))

    def spy(logits: torch.Tensor, targets: torch.Tensor, *_: object) -> torch.Tensor:
        seen[-1] = (seen[-1][0], targets)
        return logits.square().mean()

    monkeypatch.setattr(train, "initial", lambda *_: network)
    monkeypatch.setattr(train, "adjusted_cross_entropy", spy)
    train.fit(plan, CONFIG.model_copy(update={"steps": 5}), seed=0, progress=quiet)
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
        Arm("x", Recipe(mixup_alpha=0.4, transform="affine")).build(blank(), 0),
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


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Arm("x", Recipe(transform="affine", mixup_alpha=0.4)).build(blank(), 0)
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


def test_balanced_accuracy_is_that_of_sklearn() -> None:
    from sklearn.metrics import balanced_accuracy_score

    r = np.random.default_rng(0)
    p, y = r.random((50, 4)), r.integers(0, 3, 50)
    assert train.balanced_accuracy(p[:, :3], y) == pytest.approx(balanced_accuracy_score(y, p[:, :3].argmax(1)))
