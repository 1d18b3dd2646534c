"""Closed forms of the naive models."""

from __future__ import annotations

import pytest
import torch

from pipeline.generators.naive import Naive, NaiveConfig

SHAPE = (1, 1, 2)


def model(kind: str, components: int = 2, shrinkage: float = 0.0, bandwidth: float = 0.3) -> Naive:
    return Naive(
        NaiveConfig(kind=kind, components=components, shrinkage=shrinkage, bandwidth=bandwidth),
        shape=SHAPE,
        n_classes=2,  # type: ignore[arg-type]
    )


def gaussian_data(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    factor = torch.tensor([[0.10, 0.0], [0.06, 0.05]])
    centres = torch.tensor([[0.2, -0.3], [-0.4, 0.1]])
    labels = torch.arange(n) % 2
    x = centres[labels] + torch.randn(n, 2, generator=rng) @ factor.mT
    return x.view(n, *SHAPE), labels, centres, factor @ factor.mT


def test_gaussian_data_give_back_mean_and_covariance() -> None:
    images, labels, centres, covariance = gaussian_data(4000)
    fitted = model("gaussian").fit(images, labels, seed=0)
    out = fitted.sample(torch.zeros(20000, dtype=torch.int64), range(20000)).flatten(1)
    torch.testing.assert_close(out.mean(0), centres[0], atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(out.mT), covariance, atol=0.001, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "kernel"])
@pytest.mark.parametrize("components", [1, 2])
def test_the_density_integrates_to_one(kind: str, components: int) -> None:
    images, labels, _, _ = gaussian_data(30)
    fitted = model(kind, components).fit(images, labels, seed=0)
    side = torch.linspace(-2, 2, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).view(-1, *SHAPE)
    for c in (0, 1):
        mass = fitted.log_prob(grid, torch.full((len(grid),), c)).exp().sum() * (side[1] - side[0]) ** 2
        assert float(mass) == pytest.approx(1.0, abs=1e-3)


def test_kernel_samples_stand_around_the_train_points_in_equal_shares() -> None:
    images = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.7], [0.01, 0.69]]).view(4, *SHAPE)
    labels = torch.tensor([0, 0, 1, 1])
    fitted = model("kernel", bandwidth=0.01).fit(images, labels, seed=0)
    out = fitted.sample(torch.zeros(400, dtype=torch.int64), range(400)).flatten(1)
    assert float(out[:, 0].abs().sub(0.5).abs().max()) < 0.05
    assert 160 < int((out[:, 0] > 0).sum()) < 240


def test_a_class_of_one_image_borrows_the_pooled_covariance() -> None:
    images, labels, _, _ = gaussian_data(400)
    keep = torch.cat([(labels == 0).nonzero().squeeze(1), (labels == 1).nonzero().squeeze(1)[:1]])
    fitted = model("gaussian", shrinkage=0.2).fit(images[keep], labels[keep], seed=0)
    spread = fitted.sample(torch.ones(500, dtype=torch.int64), range(500)).flatten(1).std(0)
    assert float(spread.min()) > 0.02
