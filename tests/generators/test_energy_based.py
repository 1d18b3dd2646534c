"""Langevin, Gaussians, contrast and jump against closed forms; chains that keep their class; resumed and diverging fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from helpers.contracts_settings import SETTINGS, digits
from pipeline.core.seeds import derive, noise
from pipeline.errors import ConfigError, Diverged
from pipeline.generators import energy_based
from pipeline.generators.energy_based import Chains, EnergyBased, EnergyBasedConfig, Gaussians, langevin, slope
from pipeline.generators.shared.base import HasEnergy, HasLogProb
from pipeline.runtime.training import Learner

SHAPE, CLASSES = (1, 8, 8), 3


def build(**changes: object) -> EnergyBased:
    return EnergyBased(EnergyBasedConfig(**{**SETTINGS["energy_based"], **changes}), shape=SHAPE, n_classes=CLASSES)


@pytest.fixture(scope="module")
def fitted() -> EnergyBased:
    return build(augment=0.0, steps=200, lr=0.01).fit(*digits(), seed=3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_langevin_gives_back_the_mean_and_covariance_of_a_gaussian() -> None:
    """In each principal direction of variance v the chain's own variance is v / (1 - step / 4v), exactly."""
    mean, step = torch.tensor([1.0, -2.0]).double(), 0.2
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
    v = torch.tensor([1.5, 0.3]).double()
    precision = turn @ torch.diag(1 / v) @ turn.mT
    x = langevin(
        lambda x: 0.5 * ((x - mean) @ precision * (x - mean)).sum(1), torch.zeros(20000, 2).double(), randn(80, 20000, 2), step
    )
    torch.testing.assert_close(x.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(x.T.cov(), turn @ torch.diag(v / (1 - step / (4 * v))) @ turn.mT, atol=0.04, rtol=0)


def gaussians(components: int, around: float = 0.3) -> tuple[Gaussians, list[MultivariateNormal]]:
    """Gaussians fitted to images of 2 x 3 pixels, and the same from their definition."""
    labels = torch.arange(60) % 2
    images = (randn(60, 6) * torch.linspace(0.2, 1.0, 6) + labels[:, None]).view(60, 1, 2, 3)
    ours = Gaussians(6, 2, components).double()
    ours.fit(images, labels, noise=around, shrinkage=0.2)
    x, d = images.flatten(1), components
    values, vectors = torch.linalg.eigh(x.T.cov())
    basis, left = vectors[:, 6 - d :], values[: 6 - d].sum() / max(1, 6 - d)
    plane = basis @ basis.mT
    centred = x - torch.stack([x[labels == c].mean(0) for c in range(2)])[labels]
    pooled, a = centred.mT @ centred / 58, 0.2 + 0.8 * d / (d + 30)
    known = []
    for c in range(2):
        covariance = (1 - a) * centred[labels == c].T.cov() + a * pooled
        outside = (left + around**2) * (torch.eye(6) - plane)
        mean = x.mean(0) + plane @ (x[labels == c].mean(0) - x.mean(0))
        known.append(MultivariateNormal(mean, plane @ covariance @ plane + around**2 * plane + outside))
    return ours, known


@pytest.mark.parametrize("components", [3, 6])
def test_the_gaussians_are_those_of_their_definition(components: int) -> None:
    ours, known = gaussians(components)
    x = randn(5, 6, seed=1)
    energy = ours.energy(x.view(5, 1, 2, 3), torch.tensor([0, 1]).expand(5, 2))
    gap = energy + torch.stack([normal.log_prob(x) for normal in known], 1)
    torch.testing.assert_close(gap, gap[:1, :1].expand(5, 2))  # one constant for all images and classes
    drawn = ours.draw(torch.ones(20000).long(), randn(20000, 1, 2, 3, seed=2)).flatten(1)
    torch.testing.assert_close(drawn.mean(0), known[1].mean, atol=0.04, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), known[1].covariance_matrix, atol=0.05, rtol=0)


def test_the_contrast_matches_moments() -> None:
    """f is linear in the last layer, an exponential family: its gradient is the gap of mean features, made minus real."""
    model, n = build(label_weight=0.0, energy_weight=0.0), 16
    y = torch.arange(n) % 2
    real, made = randn(n, *SHAPE, seed=1).float(), randn(n, *SHAPE, seed=2).float()
    none, seen = torch.zeros(n, 9), []
    model.network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model._loss(model.network, (real, none), (made, none), y).backward()
    of_real, of_made = seen[0].chunk(2)
    for c in range(2):
        expected = (of_made[y == c].sum(0) - of_real[y == c].sum(0)) / n
        torch.testing.assert_close(model.network.head.weight.grad[c], expected, atol=1e-6, rtol=1e-4)
    assert float(model.network.head.weight.grad[2].abs().max()) == 0.0  # no image of that class


def test_the_cross_entropy_is_that_of_the_energies() -> None:
    images, labels = digits()
    model, n = build(label_weight=1.0, energy_weight=0.0), 16
    model.network.reference.fit(images, labels, noise=0.3, shrinkage=0.2)
    torch.nn.init.normal_(model.network.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    y, none = labels[:n], torch.zeros(n, 9)
    loss = model._loss(model.network, (images[:n], none), (images[:n], none), y)  # made as real: no contrast
    energies = torch.stack([model.energy(images[:n], torch.full((n,), c)) for c in range(CLASSES)], 1)
    expected = -(-energies).log_softmax(1).gather(1, y[:, None]).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-4)


def test_a_batch_takes_a_chain_once_and_of_its_own_class() -> None:
    chains, stream = Chains(torch.zeros(3, 8, *SHAPE), torch.zeros(3, 8, 9)), torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 2, 2, 0, 2, 2, 2, 2, 2])
    taken = [chains.rows(labels, stream) for _ in range(40)]
    for rows in taken:
        assert len({(int(y), int(row)) for y, row in zip(labels, rows, strict=True)}) == len(labels)
    assert len({int(rows[1]) for rows in taken}) == 8  # each in its turn


def test_chains_keep_their_class_and_begin_anew_at_the_share_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: list[float] = []

    def marked(self: Gaussians, labels: Tensor, e: Tensor) -> Tensor:
        return torch.zeros_like(e) + (0.1 * labels + 0.05).view(-1, 1, 1, 1)

    def unmarks(energy: object, x: Tensor, draws: object, step: float) -> Tensor:
        marks = (x * 10 % 1 > 0.25) & (x * 10 % 1 < 0.75)
        fresh.extend(marks[:, 0, 0, 0].double().tolist())
        return torch.where(marks, x - 0.05, x)

    monkeypatch.setattr(Gaussians, "draw", marked)
    monkeypatch.setattr(energy_based, "langevin", unmarks)
    model = build(steps=60, restart=0.3).fit(*digits(), seed=0)
    assert abs(sum(fresh[960:]) / 960 - 0.3) < 0.06  # by then all chains have been in use
    for c in range(CLASSES):
        torch.testing.assert_close(model.chains.images[c], torch.full_like(model.chains.images[c], 0.1 * c))


class Killed(Exception):
    pass


def test_a_killed_fit_goes_on_to_the_same_weights_and_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    step = Learner.step

    def dies_at_5(self: Learner, loss: Tensor, k: int) -> float:
        if k == 5:
            raise Killed
        return step(self, loss, k)

    undisturbed = build(steps=9, restart=0.3).fit(*digits(), seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dies_at_5)
        with pytest.raises(Killed):
            build(steps=9, restart=0.3).fit(*digits(), seed=5, folder=tmp_path)
    resumed = build(steps=9, restart=0.3).fit(*digits(), seed=5, folder=tmp_path)
    for part in ("network", "chains"):
        one, other = getattr(undisturbed, part).state_dict(), getattr(resumed, part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_energy_prefers_real_images_to_noise_and_the_right_class(fitted: EnergyBased) -> None:
    images, labels = digits()
    right = fitted.energy(images, labels)
    assert right.dtype == torch.float64 and right.shape == labels.shape
    uniform = torch.rand(len(images), *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float((right < fitted.energy(uniform, labels)).double().mean()) > 0.9
    for other in (1, 2):
        assert float((right < fitted.energy(images, (labels + other) % CLASSES)).double().mean()) > 0.9


def test_the_network_tilts_the_gaussian_towards_real_images(fitted: EnergyBased) -> None:
    """What is learned beyond the Gaussian: f is higher at noisy real images than at draws of the Gaussian."""
    images, labels = digits()
    none = torch.zeros(len(images), 9)
    real = images + 0.3 * randn(*images.shape).float()
    naive = fitted.network.reference.draw(labels, randn(*images.shape, seed=1).float())
    with torch.no_grad():
        gap = (fitted.network.tilt(real, none) - fitted.network.tilt(naive, none)).gather(1, labels[:, None])
    assert float(gap.mean()) > 0.2


def test_it_has_an_energy_and_no_likelihood(fitted: EnergyBased) -> None:
    assert isinstance(fitted, HasEnergy) and not isinstance(fitted, HasLogProb) and not hasattr(fitted, "log_prob")


def test_a_saved_model_has_the_same_energies_and_leaves_its_chains_behind(fitted: EnergyBased, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again, (images, labels) = EnergyBased.load(tmp_path), digits()
    assert torch.equal(again.energy(images, labels), fitted.energy(images, labels))
    assert again.chains is None and fitted.chains is not None
    y, seeds = torch.tensor([0, 1, 2]), [1, 2, 3]
    assert torch.equal(again.sample(y, seeds), fitted.sample(y, seeds))  # so that no sample starts at a chain


def test_the_last_jump_is_the_posterior_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where f = 0, images are Gaussian: E[image | x] = m + S (S + s^2 I)^-1 (x - m)."""
    images, labels = digits()
    model = build(components=64)
    model.network.reference.fit(images * 0.3, labels, noise=0.3, shrinkage=0.2)
    monkeypatch.setattr(energy_based, "langevin", lambda energy, x, draws, step: x)
    x = model.network.reference.draw(torch.tensor([1]), noise([derive(7, "energy_based", 0)], SHAPE)).double().flatten()
    gaussian = model.network.reference.double()
    inverse = gaussian.whiten[1].mT @ gaussian.whiten[1]
    s2, basis, mean = 0.3**2, gaussian.basis, gaussian.mean + gaussian.basis @ gaussian.centres[1]
    inside = torch.linalg.inv(inverse) - s2 * torch.eye(64)
    expected = mean + basis @ inside @ inverse @ basis.mT @ (x - mean)
    model.network.reference.float()
    got = model.sample(torch.tensor([1]), [7]).double().flatten()
    torch.testing.assert_close(got, expected.clamp(-1, 1), atol=1e-4, rtol=0)


def test_slopes_are_gradients_also_where_gradients_are_off() -> None:
    x = randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(slope(lambda x: x.pow(3).sum(1), x), 3 * x**2)


def test_chains_that_run_away_are_reported(fitted: EnergyBased) -> None:
    with pytest.raises(Diverged, match=r"at step \d+.*lower energy_based.lr or step_size"):
        build(lr=0.5, step_size=3.9, energy_weight=0.0, steps=60).fit(*digits(), seed=0)
    steep = build(augment=0.0)
    steep.network.load_state_dict(fitted.network.state_dict())
    with torch.no_grad():
        steep.network.head.weight.mul_(1e3)
    with pytest.raises(Diverged, match="when sampling"):
        steep.sample(torch.tensor([0]), [1])


@pytest.mark.parametrize(
    ("changes", "message"), [({"patch": 3}, "multiple of 3.*patch=1"), ({"chains": 8}, "chains=8.*set energy_based.chains=32")]
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)
