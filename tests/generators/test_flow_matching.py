"""Solvers against analytic paths, non-leaking augmentation, resumed fits, and what the settings refuse."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from contracts_settings import SETTINGS, digits

from pipeline import augmentation, solvers
from pipeline.errors import ConfigError, Diverged
from pipeline.generators import flow_matching
from pipeline.generators.flow_matching import Config, Model
from pipeline.training import loop

SHAPE = (1, 8, 8)


def build(**changes: object) -> Model:
    return Model(Config(**{**SETTINGS["flow_matching"], **changes}), shape=SHAPE, n_classes=3)


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """The exact field between N(2, 0.5^2) and N(0, 1): v = d/dt of the quantile map of N((1-t) 2, (1-t)^2/4 + t^2)."""
    mean, var = 2 * (1 - t), (1 - t) ** 2 / 4 + t**2
    return -2 + (t - (1 - t) / 4) / var * (x - mean)


def test_solvers_follow_the_analytic_path() -> None:
    x1 = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    exact = 2 + 0.5 * x1
    errors = [float((solvers.heun(velocity, x1, n) - exact).abs().max()) for n in (10, 20, 40)]
    assert errors[-1] < 2e-3
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3  # second order
    first = [float((solvers.euler(velocity, x1, n) - exact).abs().max()) for n in (10, 20, 40)]
    assert 1.6 < first[1] / first[2] < 2.6 and first[2] > errors[2]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_heun_takes_two_evaluations_a_step_but_one_for_the_last(n: int) -> None:
    calls: list[float] = []
    solvers.heun(lambda x, t: calls.append(t) or x, torch.zeros(1, 1, 1, 1), n)  # type: ignore[func-returns-value]
    assert len(calls) == 2 * n - 1 and 0.0 not in calls


def test_augmentation_without_probability_is_the_identity_and_says_so() -> None:
    images = torch.rand(6, 1, 8, 8)
    maps, told = augmentation.random_maps(6, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(augmentation.apply(images, maps), images)
    assert float(told.abs().max()) == 0.0


def test_every_changed_image_is_told_to_the_network() -> None:
    maps, told = augmentation.random_maps(500, 0.3, torch.Generator().manual_seed(0))
    changed = (maps - torch.eye(2, 3)).flatten(1).abs().sum(1) > 1e-6
    assert bool(((told.abs().sum(1) > 0) == changed).all()) and 0.5 < float(changed.double().mean()) < 1.0


def test_what_is_told_is_the_whole_map() -> None:
    """The map can be rebuilt from the nine numbers: what the network is not told would leak into its samples."""
    maps, told = augmentation.random_maps(200, 0.7, torch.Generator().manual_seed(1))
    flip_x, flip_y, scale, cos, sin, stretch_cos, stretch_sin, shift_x, shift_y = told.unbind(-1)
    eye, cos = torch.eye(2), cos + 1
    growth = torch.hypot(stretch_cos, stretch_sin) / 5 * math.log(2)
    along = torch.atan2(stretch_sin, stretch_cos)
    mirror = torch.stack([along.cos(), along.sin(), along.sin(), -along.cos()], -1).view(-1, 2, 2)
    stretch = growth.cosh()[:, None, None] * eye + growth.sinh()[:, None, None] * mirror
    rotation = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
    flip = torch.diag_embed(torch.stack([1 - 2 * flip_x, 1 - 2 * flip_y], -1))
    linear = flip @ ((scale / 5).exp2()[:, None, None] * stretch) @ rotation
    rebuilt = torch.cat([linear, torch.stack([shift_x, shift_y], -1)[:, :, None] / 8], -1)
    torch.testing.assert_close(rebuilt, maps, atol=1e-5, rtol=1e-4)


def test_a_flip_is_a_flip() -> None:
    image = torch.rand(1, 1, 8, 8)
    mirrored = augmentation.apply(image, torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]))
    torch.testing.assert_close(mirrored, image.flip(-1))


class Killed(Exception):
    pass


def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits()
    monkeypatch.setattr("pipeline.training.CHECKPOINT_SECONDS", 0.0)
    undisturbed = build(steps=12, dropout=0.2).fit(images, labels, seed=5).network.state_dict()
    step = flow_matching.Learner.step

    def dies_at_7(self: flow_matching.Learner, loss: torch.Tensor, k: int) -> float:
        if k == 7:
            raise Killed
        return step(self, loss, k)

    with monkeypatch.context() as patch:
        patch.setattr(flow_matching.Learner, "step", dies_at_7)
        with pytest.raises(Killed):
            build(steps=12, dropout=0.2).fit(images, labels, seed=5, folder=tmp_path)
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")  # a torn checkpoint: the one before it is taken
    resumed = build(steps=12, dropout=0.2).fit(images, labels, seed=5, folder=tmp_path).network.state_dict()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    other = build(steps=12, dropout=0.2).fit(images, labels, seed=6).network.state_dict()
    assert any(not torch.equal(undisturbed[name], other[name]) for name in undisturbed)


def test_a_non_finite_loss_stops_the_fit_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits()
    monkeypatch.setattr("pipeline.training.CHECKPOINT_SECONDS", 0.0)
    step = flow_matching.Learner.step
    monkeypatch.setattr(
        flow_matching.Learner, "step", lambda self, loss, k: step(self, loss * float("nan") if k == 4 else loss, k)
    )
    with pytest.raises(Diverged, match=r"step 4.*lower lr"):
        build(steps=8).fit(images, labels, seed=5, folder=tmp_path)
    assert [f.name[:9] for f in sorted(tmp_path.glob("*.safetensors"))] == ["000000003", "000000004"]


def test_each_step_draws_other_dropout_masks() -> None:
    drawn: list[torch.Tensor] = []

    def update(k: int) -> float:
        drawn.append(torch.rand(4))
        return 0.0

    for _ in range(2):
        loop({}, update, steps=3, seed=0, name="x", images_per_step=1, quiet=True)
    assert len({tuple(d.tolist()) for d in drawn[:3]}) == 3
    assert all(torch.equal(a, b) for a, b in zip(drawn[:3], drawn[3:], strict=True))


def test_the_state_of_torch_random_numbers_is_left_alone() -> None:
    images, labels = digits()
    before = torch.random.get_rng_state()
    build(steps=2, dropout=0.2).fit(images, labels, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_guidance_changes_samples_and_scale_one_is_plain() -> None:
    images, labels = digits()
    plain = build(steps=30).fit(images, labels, seed=0)
    guided = copy.copy(plain)
    guided.config = plain.config.model_copy(update={"guidance_scale": 3.0})
    y, seeds = torch.tensor([0, 1]), [1, 2]
    assert not torch.equal(plain.sample(y, seeds), guided.sample(y, seeds))


def test_diffusers_network_serves_as_well(tmp_path: Path) -> None:
    images, labels = digits()
    model = build(network="diffusers", width=32, steps=3).fit(images, labels, seed=0)
    model.save(tmp_path)
    y, seeds = torch.tensor([0, 1]), [1, 2]
    assert torch.equal(Model.load(tmp_path).sample(y, seeds), model.sample(y, seeds))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch": 3}, "multiple of 6.*patch=1"), ({"guidance_scale": 2.0, "label_dropout": 0.0}, "label_dropout=0.1")],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)
