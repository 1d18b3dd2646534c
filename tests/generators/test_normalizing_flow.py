"""The flow is an invertible map with the Jacobian it claims, its density integrates to one, and Gaussians come back."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.contracts_settings import SETTINGS, digits
from pipeline.core.seeds import noise
from pipeline.generators.normalizing_flow import NAME, Flow, NormalizingFlow, NormalizingFlowConfig, Whitening
from pipeline.generators.shared import density
from pipeline.generators.shared.augmentation import CONDITIONS

PLANE = (1, 1, 2)
MEANS = torch.tensor([[-0.3, 0.2], [0.4, 0.0]])
FACTOR = torch.tensor([[0.15, 0.0], [0.09, 0.12]])  # of the covariance of both classes


def build(shape: tuple[int, int, int], n_classes: int, **changes: object) -> NormalizingFlow:
    plain = {"augment": 0.0, "noise": 0.0, "shrinkage": 0.0, "block_images": 256}
    return NormalizingFlow(NormalizingFlowConfig(**{**SETTINGS[NAME], **plain, **changes}), shape=shape, n_classes=n_classes)


def shaken(model: NormalizingFlow, strength: float = 0.05) -> NormalizingFlow:
    """The model with random weights everywhere: couplings far from the identity, a whitening that is none."""
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(strength * torch.randn(parameter.shape, generator=stream))
        whitening = model.network.whitening
        whitening.basis.copy_(torch.linalg.qr(torch.randn(whitening.basis.shape, generator=stream)).Q)
        whitening.mean.add_(0.2)
        whitening.scale.mul_(torch.rand(whitening.scale.shape, generator=stream) + 0.5)
        whitening.residual.mul_(0.7)
    return model


def conditions(n: int) -> Tensor:
    return torch.rand(n, CONDITIONS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def grid(points: int) -> Tensor:
    """Midpoints (points^2, 1, 1, 2) of equal cells of [-1, 1]^2."""
    line = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 - 1
    return torch.cartesian_prod(line, line).view(-1, *PLANE)


@pytest.fixture(scope="module")
def gaussian() -> NormalizingFlow:
    """Fitted to two classes of Gaussian points with one covariance."""
    labels = torch.arange(2).repeat(1000)
    points = MEANS[labels] + torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) @ FACTOR.mT
    settings = {"couplings": 2, "width": 16, "steps": 150, "batch_images": 256, "lr": 0.01}
    return build(PLANE, 2, **settings).fit(points.view(-1, *PLANE), labels, seed=0)


def test_the_inverse_undoes_the_map() -> None:
    flow = shaken(build((1, 4, 4), 3, couplings=6)).network.double().eval()
    z, labels = 2 * noise(range(32), (flow.means.shape[1],)).double(), torch.arange(32) % 3
    with torch.no_grad():
        transform = flow.transform(labels, conditions(32))
        u = transform(z)
        back = transform.inv(u)
    assert float((u - z).abs().mean()) > 0.05
    torch.testing.assert_close(back, z, atol=1e-11, rtol=0)


@pytest.mark.parametrize("components", [2, 4])
def test_log_prob_is_the_base_density_and_the_jacobian_of_autograd(components: int) -> None:
    """On (1, 2, 2) images: z from the flow, off-plane coordinates from a completed basis, and the whole map by autograd."""
    model = shaken(build((1, 2, 2), 3, components=components))
    flow: Flow = copy.deepcopy(model.network).double().eval()
    whitening, none = flow.whitening, torch.zeros(1, CONDITIONS, dtype=torch.float64)
    basis = torch.linalg.qr(whitening.basis).Q  # float32 columns made orthonormal in float64
    whitening.basis.copy_(basis)
    model.network.whitening.double().basis.copy_(basis)
    across = torch.linalg.svd(basis).U[:, components:]
    for seed in range(3):
        x, label = torch.tanh(noise([seed], (4,))[0]).double(), torch.tensor([seed])

        def whole(x: Tensor, label: Tensor = label) -> Tensor:
            logit = density.to_logits(x[None])[0]
            u = flow.transform(label, none)(whitening(logit)[0]) - flow.means[label]
            return torch.cat([u, (logit - whitening.mean) @ across / whitening.residual], 1)[0]

        _, logdet = torch.linalg.slogdet(torch.autograd.functional.jacobian(whole, x))
        expected = logdet - 0.5 * whole(x).square().sum() - 2 * math.log(2 * math.pi)
        found = model.log_prob(x.view(1, 1, 2, 2), label)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[0], expected, atol=1e-9, rtol=0)


def test_the_density_integrates_to_one(gaussian: NormalizingFlow) -> None:
    points = grid(160)
    for label in (0, 1):
        mass = gaussian.log_prob(points, torch.full((len(points),), label)).exp().sum() / 80**2
        assert float(mass) == pytest.approx(1.0, abs=2e-3)


def test_gaussian_points_give_back_mean_and_covariance(gaussian: NormalizingFlow) -> None:
    for label in (0, 1):
        drawn = gaussian.sample(torch.full((4000,), label), range(4000)).flatten(1)
        torch.testing.assert_close(drawn.mean(0), MEANS[label], atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.mT.cov(), FACTOR @ FACTOR.mT, atol=0.006, rtol=0)


def test_samples_lie_where_the_density_says(gaussian: NormalizingFlow) -> None:
    """Shares of samples in the cells of a coarse grid are the integrals of exp(log_prob) over them."""
    fine, labels = grid(160), torch.zeros(160**2, dtype=torch.int64)
    mass = (gaussian.log_prob(fine, labels).exp() / 80**2).view(8, 20, 8, 20).sum((1, 3))
    drawn = gaussian.sample(torch.zeros(20000, dtype=torch.int64), range(20000)).flatten(1)
    cell = ((drawn + 1) * 4).long().clamp(max=7)
    share = torch.bincount(8 * cell[:, 0] + cell[:, 1], minlength=64).view(8, 8) / 20000
    assert float((share - mass).abs().sum()) < 0.04


def test_temperature_zero_gives_one_image_a_class_and_heat_gives_variety(gaussian: NormalizingFlow) -> None:
    spread = {}
    for temperature in (0.0, 0.5, 1.0):
        model = copy.copy(gaussian)
        model.config = gaussian.config.model_copy(update={"temperature": temperature})
        spread[temperature] = float(model.sample(torch.zeros(200).long(), range(200)).flatten(1).std(0).mean())
    assert spread[0.0] < 1e-6
    assert 0.4 < spread[0.5] / spread[1.0] < 0.6


def test_whitened_classes_have_unit_covariance_and_the_plane_holds_the_largest_variances() -> None:
    labels = torch.arange(3).repeat(200)
    x = 3 * noise(range(3), (6,)).double()[labels] + noise(range(600), (6,)).double() * torch.tensor([5, 4, 3, 0.1, 0.1, 0.1])
    whitening = Whitening(6, 4)
    whitening.fit(x, labels, 0.0)
    z, _ = whitening.double()(x)
    inner = torch.cat([z[labels == c] - z[labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(inner.mT.cov() * 599 / 597, torch.eye(4).double(), atol=0.01, rtol=0)
    back = whitening.inverse(z, torch.zeros(600, 6).double())
    assert float((back - x).square().sum() / x.square().sum()) < 0.05


def test_noise_off_the_plane_leaves_the_coordinates_alone() -> None:
    whitening = Whitening(6, 4).double()
    whitening.basis.copy_(torch.linalg.qr(noise(range(6), (4,)).double()).Q)
    z, e = noise(range(9), (4,)).double(), noise(range(9), (6,)).double()
    found, density_off = whitening(whitening.inverse(z, e))
    torch.testing.assert_close(found, z, atol=1e-12, rtol=0)
    across = e @ torch.linalg.svd(whitening.basis).U[:, 4:]
    torch.testing.assert_close(density_off, -0.5 * across.square().sum(1) - math.log(2 * math.pi), atol=1e-12, rtol=0)


def test_fewer_images_than_components_are_enough() -> None:
    images, labels = digits()
    few = torch.cat([(labels == c).nonzero()[:2, 0] for c in range(3)])
    model = build((1, 8, 8), 3, steps=3, shrinkage=0.1).fit(images[few], labels[few], seed=0)
    basis = model.network.whitening.basis
    torch.testing.assert_close(basis.mT @ basis, torch.eye(64), atol=1e-5, rtol=0)
    assert bool(model.log_prob(images, labels).isfinite().all())


def test_pixels_at_both_ends_have_a_finite_density(gaussian: NormalizingFlow) -> None:
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).view(-1, *PLANE)
    assert bool(gaussian.log_prob(corners, torch.zeros(3).long()).isfinite().all())


def test_dropout_is_off_when_sampling_and_measuring() -> None:
    images, labels = digits()
    model = build((1, 8, 8), 3, steps=3, dropout=0.5).fit(images, labels, seed=0)
    y, seeds = labels[:8], list(range(8))
    assert torch.equal(model.sample(y, seeds), model.sample(y, seeds))
    assert torch.equal(model.log_prob(images, labels), model.log_prob(images, labels))


def test_the_state_of_torch_random_numbers_is_left_alone(tmp_path: Path) -> None:
    images, labels = digits()
    before = torch.random.get_rng_state()
    build((1, 8, 8), 3, steps=2, dropout=0.2).fit(images, labels, seed=0).save(tmp_path)
    NormalizingFlow.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
