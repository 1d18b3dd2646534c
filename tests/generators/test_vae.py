"""The bound against a Gaussian whose density is known, codes between codes, and what the settings refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from helpers.contracts_settings import SETTINGS, digits
from pipeline.errors import ConfigError, DataError
from pipeline.generators.vae import Autoencoder, Code, Vae, VaeConfig, divergence, halvings, log_normal, spherical

SHAPE = (1, 8, 8)


def build(shape: tuple[int, int, int] = SHAPE, **changes: object) -> Vae:
    return Vae(VaeConfig(**{**SETTINGS["vae"], **changes}), shape=shape, n_classes=3)


@pytest.fixture(scope="module")
def fitted() -> Vae:
    images, labels = digits()
    keep = torch.cat([(labels == 0).nonzero()[:20, 0], (labels == 1).nonzero()[:1, 0]])  # 20, 1 and no images
    return build(steps=40).fit(images[keep], labels[keep], seed=0)


class Linear(nn.Module):
    """Probabilistic principal components (Tipping & Bishop, 1999): x | z ~ N(W z + m_y, sigma^2 I), so log p(x | y) is known.

    Its posterior is N(M^-1 W^T (x - m_y) / sigma^2, M^-1), M = I + W^T W / sigma^2: diagonal where W has orthogonal columns.
    """

    def __init__(self, sigma: float = 0.3, widen: float = 0.0) -> None:
        super().__init__()
        columns = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))[0]
        self.w, self.sigma, self.widen = columns * torch.tensor([0.8, 0.4]), sigma, widen
        self.log_sigma = torch.full((1, 2, 3), math.log(sigma))

    def mean(self, labels: Tensor) -> Tensor:
        return 0.1 * labels[:, None].float()

    def encode(self, x: Tensor, labels: Tensor, conditions: Tensor) -> Code:
        precision = 1 + self.w.square().sum(0) / self.sigma**2
        mean = (x.flatten(1) - self.mean(labels)) @ self.w / self.sigma**2 / precision
        return Code(mean, (-0.5 * precision.log() + self.widen).expand_as(mean))

    def decode(self, z: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        return (z @ self.w.mT + self.mean(labels)).view(-1, 1, 2, 3)

    def exact(self, x: Tensor, labels: Tensor) -> Tensor:
        covariance = self.w @ self.w.mT + self.sigma**2 * torch.eye(6)
        return MultivariateNormal(self.mean(labels).expand(-1, 6).double(), covariance.double()).log_prob(x.flatten(1).double())


def linear(samples: int, widen: float = 0.0) -> tuple[Vae, Linear]:
    model = build((1, 2, 3), latent_dim=2, bound_samples=samples)
    network = Linear(widen=widen)
    model.network = network  # type: ignore[assignment]
    return model, network


X, Y = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1, torch.arange(20) % 3


@pytest.mark.parametrize("samples", [1, 4])
def test_with_the_exact_posterior_the_bound_is_the_density(samples: int) -> None:
    model, network = linear(samples)
    torch.testing.assert_close(model.log_prob(X, Y), network.exact(X, Y), atol=1e-4, rtol=1e-5)


def test_with_another_posterior_the_bound_stays_below_and_grows_with_samples() -> None:
    model, network = linear(2000, widen=0.7)
    weights, exact = model._log_weights(X, Y).view(20, 2000), network.exact(X, Y)
    gaps = []
    for k in (1, 10, 100, 2000):
        bound = (weights.view(20, -1, k).logsumexp(-1) - math.log(k)).mean(1)
        gaps.append(float((exact - bound).mean()))
    torch.testing.assert_close(bound, model.log_prob(X, Y))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[0] > 0.3 and abs(gaps[3]) < 0.03


def test_the_bound_of_an_image_does_not_depend_on_its_neighbours(fitted: Vae) -> None:
    images, labels = digits()
    together = fitted.log_prob(images[:40], labels[:40])
    assert torch.equal(fitted.log_prob(images[17:18], labels[17:18]), together[17:18])
    assert torch.equal(fitted.log_prob(images[:40], labels[:40]), together)


def test_divergence_and_density_are_those_of_torch() -> None:
    mean, log_std = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    q, prior = Normal(mean, log_std.exp()), Normal(torch.zeros(5, 4), torch.ones(5, 4))
    torch.testing.assert_close(divergence(Code(mean, log_std)), kl_divergence(Independent(q, 1), Independent(prior, 1)))
    expected = Independent(Normal(torch.zeros(5, 4), log_std.exp()), 1).log_prob(mean)
    torch.testing.assert_close(log_normal(mean, log_std), expected)


def test_interpolation_ends_at_both_codes_and_keeps_the_length_of_an_arc() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), dim=-1).unbind()
    torch.testing.assert_close(spherical(a, b, torch.zeros(5, 1)), a)
    torch.testing.assert_close(spherical(a, b, torch.ones(5, 1)), b)
    torch.testing.assert_close(spherical(a, b, torch.full((5, 1), 0.3)).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(spherical(a, a, torch.full((5, 1), 0.3)), a, atol=1e-2, rtol=0)
    assert bool(spherical(a, -a, torch.full((5, 1), 0.3)).isfinite().all())


def test_interpolation_uses_two_different_images_of_its_class() -> None:
    model = build(latent_dim=6)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    model.codes = {"mean": torch.eye(6), "log_std": torch.zeros(6, 6), "labels": labels}
    asked = torch.arange(400) % 2
    places = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    z = model._between(asked, places, torch.zeros(400, 6))
    for c in (0, 1):
        used = (z[asked == c].abs() > 1e-6).int()
        assert bool((used[:, labels != c] == 0).all()) and bool((used.sum(1) == 2).all())
        assert int(used.unique(dim=0).shape[0]) == 3  # every pair of the three images


def test_a_class_of_one_image_is_varied_within_its_posterior_and_one_of_none_is_refused(fitted: Vae) -> None:
    model = build(mode="interpolate")
    model.network, model.codes = fitted.network, fitted.codes
    eps = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    z = model._between(torch.ones(6).long(), torch.full((6, 3), 0.5), eps)
    at = int((fitted.codes["labels"] == 1).nonzero())
    torch.testing.assert_close(z, fitted.codes["mean"][at] + fitted.codes["log_std"][at].exp() * eps)
    assert model.sample(torch.tensor([0, 1]), [1, 2]).shape == (2, *SHAPE)
    with pytest.raises(DataError, match="class without train images"):
        model.sample(torch.tensor([2]), [1])


@pytest.mark.parametrize("changes", [{"mode": "interpolate"}, {"decoder_noise": True}, {"kind": "plain"}])
def test_every_way_of_sampling_is_decided_by_the_seeds(fitted: Vae, changes: dict[str, object], tmp_path: Path) -> None:
    model = build(**changes)
    images, labels = digits()
    model.network, model.codes = fitted.network, fitted._encode(images, labels)
    y, seeds = torch.tensor([0, 1, 2]), [1, 2, 3]
    out = model.sample(y, seeds)
    assert torch.equal(model.sample(y[1:2], [2]), out[1:2])
    assert not torch.equal(model.sample(y, [4, 5, 6]), out)
    assert not torch.equal(fitted.sample(y, seeds), out)
    model.save(tmp_path)
    assert torch.equal(Vae.load(tmp_path).sample(y, seeds), out)


def test_a_plain_autoencoder_samples_its_classes_and_has_no_density() -> None:
    images, labels = digits()
    model = build(kind="plain", steps=120).fit(images, labels, seed=0)
    real = torch.stack([images[labels == c].mean(0) for c in range(3)]).flatten(1)
    for c in range(3):
        mean = model.sample(torch.full((32,), c), range(32)).mean(0).flatten()
        assert int((real - mean).square().sum(1).argmin()) == c
    with pytest.raises(ConfigError, match=r"vae\.kind=plain has no density"):
        model.log_prob(images, labels)


def test_codes_of_a_plain_autoencoder_have_the_mean_and_covariance_of_their_class() -> None:
    model = build(kind="plain", latent_dim=2)
    stream = torch.Generator().manual_seed(0)
    codes = torch.randn(6000, 2, generator=stream) @ torch.tensor([[1.0, 0.5], [0.0, 0.3]])
    labels = torch.arange(6000) % 3
    model.codes = {"mean": codes + 4.0 * labels[:, None], "log_std": torch.zeros(6000, 2), "labels": labels}
    z = model._fitted(torch.ones(20000).long(), torch.randn(20000, 2, generator=stream))
    torch.testing.assert_close(z.mean(0), torch.tensor([4.0, 4.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.tensor([[1.0, 0.5], [0.5, 0.34]]), atol=0.08, rtol=0)


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, 8, 1), (3, 15, 1), (1, 28, 2), (3, 64, 4)])
def test_every_image_size_goes_through_and_back(channels: int, size: int, patch: int) -> None:
    network = Autoencoder((channels, size, size), 2, latent=3, width=8, patch=patch, dropout=0.0, conditions=9)
    x, y, none = torch.rand(2, channels, size, size), torch.tensor([0, 1]), torch.zeros(2, 9)
    code = network.encode(x, y, none)
    assert code.mean.shape == code.log_std.shape == (2, 3)
    assert network.decode(code.mean, y, none).shape == x.shape


def test_sizes_halve_rounded_up() -> None:
    assert [halvings(8), halvings(15), halvings(28)] == [[8, 4], [15, 8, 4], [28, 14, 7, 4]]


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 3.*vae\.patch=1"):
        build(patch=3)
