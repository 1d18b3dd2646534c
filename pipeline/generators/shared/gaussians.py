"""A Gaussian for each class, where a class may have fewer points than dimensions.

    S_y = (1 - a) cov_y + a pooled + ridge I,   a = shrinkage + (1 - shrinkage) d / (d + n_y)

a is the weight of a prior worth d observations: a class of few points takes the covariance within all classes (Friedman, 1989,
regularised discriminant analysis).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """means (k, d), zero for empty classes; lower factors L (k, d, d) of S_y = L L^T, and of pooled + ridge I (d, d)."""

    means: Tensor
    factors: Tensor
    pooled: Tensor


def fit(z: Tensor, labels: Tensor, n_classes: int, *, shrinkage: float = 0.0, ridge: float = 0.0) -> Gaussians:
    """A Gaussian for each class of points z (n, d) float64, labels (n,) in 0 … n_classes - 1."""
    n, d = z.shape
    means = class_means(z, labels, n_classes)
    centred, eye = z - means[labels], torch.eye(d).to(z)
    pooled = centred.mT @ centred / max(1, n - n_classes)
    covariances = torch.empty(n_classes, d, d).to(z)
    for c in range(n_classes):
        own = centred[labels == c]
        a = shrinkage + (1 - shrinkage) * d / (d + len(own))
        covariances[c] = (1 - a) * own.mT @ own / max(1, len(own) - 1) + a * pooled + ridge * eye
    return Gaussians(means, torch.linalg.cholesky(covariances), torch.linalg.cholesky(pooled + ridge * eye))


def class_means(z: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """The mean of z (n, d) in each class (k, d), zero in empty ones."""
    sums = torch.zeros(n_classes, z.shape[1]).to(z).index_add_(0, labels, z)
    return sums / torch.bincount(labels, minlength=n_classes).clamp(min=1).unsqueeze(1)
