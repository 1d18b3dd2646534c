"""Densities against closed forms, the pairing of noise, resumed fits, and the other network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.contracts_settings import SETTINGS, digits
from pipeline.errors import Diverged
from pipeline.generators.flow_matching import FlowMatching, FlowMatchingConfig, alike, directions, log_density
from pipeline.generators.shared.batches import Batch
from pipeline.runtime.training import Learner, loop

SHAPE = (1, 8, 8)


def build(**changes: object) -> FlowMatching:
    return FlowMatching(FlowMatchingConfig(**{**SETTINGS["flow_matching"], **changes}), shape=SHAPE, n_classes=3)


def velocity(x: Tensor, t: float) -> Tensor:
    """The exact field between N(2, 0.5^2) and N(0, 1): v = d/dt of the quantile map of N((1-t) 2, (1-t)^2/4 + t^2)."""
    mean, var = 2 * (1 - t), (1 - t) ** 2 / 4 + t**2
    return -2 + (t - (1 - t) / 4) / var * (x - mean)


@pytest.mark.parametrize("probes", [0, 1])
def test_the_density_of_the_exact_velocity_is_gaussian(probes: int) -> None:
    """A diagonal Jacobian: e^T J e is its trace for every e of signs."""
    x0 = torch.linspace(0.5, 3.5, 24, dtype=torch.float64).view(-1, 1, 1, 2)
    exact = torch.distributions.Normal(2.0, 0.5).log_prob(x0).flatten(1).sum(1)
    errors = [
        float((log_density(velocity, x0, n, directions((1, 1, 2), probes).double()) - exact).abs().max()) for n in (20, 40, 80)
    ]
    assert errors[-1] < 5e-3 and errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3  # second order


@pytest.fixture(scope="module")
def field() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()


def curved(field: nn.Module, x: Tensor, t: float) -> Tensor:
    rows = x.flatten(1)
    out: Tensor = 2 * field(torch.cat([rows, torch.full((len(rows), 1), t, dtype=rows.dtype)], 1))
    return out.view_as(x)


def test_a_density_in_the_plane_integrates_to_one(field: nn.Module) -> None:
    axis = torch.linspace(-9, 9, 121, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    nats = log_density(lambda x, t: curved(field, x, t), points, 24, directions((1, 1, 2), 0).double())
    assert float(nats.exp().sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=5e-3)
    assert float((nats - nats.max()).exp().mean()) < 0.5  # and is no constant


def test_probes_give_the_trace_in_the_mean(field: nn.Module) -> None:
    x = torch.randn(5, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, rough = (log_density(lambda x, t: curved(field, x, t), x, 8, directions((1, 1, 2), n).double()) for n in (0, 400))
    torch.testing.assert_close(exact, rough, atol=0.1, rtol=0.0)
    assert not torch.equal(exact, rough)


def test_directions_are_all_axes_or_signs_of_fixed_length() -> None:
    assert torch.equal(directions((1, 2, 2), 0).flatten(1), torch.eye(4))
    signs = directions((1, 2, 2), 3)
    torch.testing.assert_close(signs.square().sum(), torch.tensor(4.0))
    assert torch.equal(signs, directions((1, 2, 2), 3))


def test_noise_is_exchanged_between_unmoved_images_of_a_class_alone() -> None:
    conditions = torch.zeros(5, 9)
    conditions[1, 3] = 0.2
    batch = Batch(torch.zeros(5, *SHAPE), torch.tensor([0, 0, 0, 1, 1]), conditions, 0, torch.Generator())
    groups = alike(batch)
    assert groups[0] == groups[2] and groups[3] == groups[4] and len(set(groups)) == 3


def test_optimal_transport_is_another_fit_and_learns_as_well() -> None:
    images, labels = digits()
    plain, paired = (
        build(steps=40, batch_images=64, augment=0.0, path=p).fit(images, labels, seed=0)
        for p in ("linear", "optimal_transport")
    )
    y = torch.arange(3).repeat_interleave(8)
    assert not torch.equal(plain.sample(y, range(24)), paired.sample(y, range(24)))
    means = paired.sample(y, range(24)).view(3, 8, *SHAPE).mean(1)
    real = torch.stack([images[labels == c].mean(0) for c in range(3)])
    assert float((means - real).square().mean()) < 0.5 * float(real.square().mean())


class Killed(Exception):
    pass


def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits()
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    undisturbed = build(steps=12, dropout=0.2).fit(images, labels, seed=5).networks.state_dict()
    step = Learner.step

    def dies_at_7(self: Learner, loss: torch.Tensor, k: int) -> float:
        if k == 7:
            raise Killed
        return step(self, loss, k)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dies_at_7)
        with pytest.raises(Killed):
            build(steps=12, dropout=0.2).fit(images, labels, seed=5, folder=tmp_path)
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")  # a torn checkpoint: the one before it is taken
    resumed = build(steps=12, dropout=0.2).fit(images, labels, seed=5, folder=tmp_path).networks.state_dict()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    other = build(steps=12, dropout=0.2).fit(images, labels, seed=6).networks.state_dict()
    assert any(not torch.equal(undisturbed[name], other[name]) for name in undisturbed)


def test_a_non_finite_loss_stops_the_fit_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits()
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, loss, k: step(self, loss * float("nan") if k == 4 else loss, k))
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


def test_diffusers_network_serves_as_well(tmp_path: Path) -> None:
    images, labels = digits()
    model = build(network="diffusers", width=32, steps=3).fit(images, labels, seed=0)
    model.save(tmp_path)
    y, seeds = torch.tensor([0, 1]), [1, 2]
    assert torch.equal(FlowMatching.load(tmp_path).sample(y, seeds), model.sample(y, seeds))
