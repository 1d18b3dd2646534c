"""Class-wise Gaussians: their own mean and covariance where images are many, the pooled one where they are few."""

from __future__ import annotations

import torch

from pipeline.generators.shared import gaussians


def test_classes_of_many_points_keep_their_mean_and_covariance() -> None:
    rng = torch.Generator().manual_seed(0)
    scales = torch.tensor([[1.0, 2.0], [3.0, 0.5]]).double()
    labels = torch.arange(2).repeat_interleave(20_000)
    z = torch.randn(40_000, 2, generator=rng, dtype=torch.float64) * scales[labels] + 5.0 * labels[:, None]
    fitted = gaussians.fit(z, labels, 2)
    torch.testing.assert_close(fitted.means, torch.tensor([[0.0, 0.0], [5.0, 5.0]]).double(), atol=0.1, rtol=0)
    covariances = fitted.factors @ fitted.factors.mT
    torch.testing.assert_close(covariances, torch.diag_embed(scales.square()), atol=0.2, rtol=0)
    pooled = scales.square().mean(0).diag()
    torch.testing.assert_close(fitted.pooled @ fitted.pooled.mT, pooled, atol=0.2, rtol=0)


def test_a_class_of_few_points_is_drawn_to_the_others() -> None:
    """S = (1 - a) cov + a pooled + ridge I with a = s + (1 - s) d / (d + n)."""
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [7.0, 7.0]]).double()
    labels = torch.tensor([0, 0, 0, 0, 1])
    fitted = gaussians.fit(z, labels, 3, shrinkage=0.1, ridge=0.25)
    eye = torch.eye(2).double()
    own, pooled, a = 4 / 3 * eye, 2.0 * eye, 0.1 + 0.9 * 2 / 6  # pooled: a sum of squares of 4 over 5 points - 3 classes
    covariances = fitted.factors @ fitted.factors.mT
    torch.testing.assert_close(covariances[0], (1 - a) * own + a * pooled + 0.25 * eye)
    torch.testing.assert_close(covariances[1], (0.1 + 0.9 * 2 / 3) * pooled + 0.25 * eye)
    torch.testing.assert_close(covariances[2], pooled + 0.25 * eye)  # no point at all
    assert fitted.means[1].tolist() == [7.0, 7.0] and fitted.means[2].tolist() == [0.0, 0.0]
