"""Naive models: a Gaussian, or a kernel density, for each class. The control that every other family must beat.

Both live in the plane of the first d principal components V of the train images, m their mean. Around it is isotropic noise:

    x = m + V z + r,    r ~ N(0, s^2 (I - V V^T)),   s^2 the mean of the left-out eigenvalues   (Tipping & Bishop, 1999)
    gaussian   z | y ~ N(mu_y, S_y),   S_y = (1 - a) cov_y + a pooled,   a at least `shrinkage`, nearer 1 for fewer images
    kernel     z | y ~ (1 / n_y) sum_i N(z_i, b^2 pooled)                 (Parzen, 1962)

Both densities are exact: log p(x | y) = log p(z | y) + log N(r; 0, s^2) with z = V^T (x - m), and integrate to one.
a = shrinkage + (1 - shrinkage) d / (d + n_y) is the weight of a prior worth d observations (Friedman, 1989, regularised
discriminant analysis).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Count, Section, Share
from pipeline.core.seeds import noise, rng
from pipeline.errors import DataError
from pipeline.generators.shared import density, gaussians
from pipeline.generators.shared.base import GenerativeModel, Traits

NAME = "naive"
# Least standard deviation, in units of [-1, 1]: that of a uniform place in a grey level's cell.
FLOOR = 1 / (128 * math.sqrt(12))


class NaiveConfig(Section):
    """The section `naive` of params.yaml."""

    kind: Literal["gaussian", "kernel"] = "gaussian"
    """gaussian | kernel: the density of each class"""
    components: Count = 32
    """principal components; the rest is isotropic noise"""
    shrinkage: Share = 0.2
    """gaussian: weight of the pooled covariance in that of each class, at least"""
    bandwidth: Annotated[float, Field(gt=0.0)] = 0.3
    """kernel: in units of the pooled standard deviation"""


class Naive(GenerativeModel):
    """Class-conditional Gaussian with shrinkage, or kernel density."""

    traits = Traits(density="explicit", likelihood="exact")
    name = NAME
    Config = NaiveConfig
    config: NaiveConfig

    def build(self) -> None:
        self.state: dict[str, Tensor] = {}

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        x = density.dequantise(images, rng(seed, NAME)).flatten(1).double()
        n, dim = x.shape
        mean = x.mean(0)
        _, singular, basis = torch.linalg.svd(x - mean, full_matrices=False)
        d = min(self.config.components, dim, max(1, n - 1))
        basis = basis[:d].mT.contiguous()
        left = singular[d:].square().sum() / max(1, (n - 1) * (dim - d))
        z = (x - mean) @ basis
        fitted = gaussians.fit(z, labels, self.n_classes, shrinkage=self.config.shrinkage, ridge=FLOOR**2)
        self.state = {
            "mean": mean, "basis": basis, "residual": left.sqrt().clamp(min=FLOOR), "means": fitted.means,
            "factors": fitted.factors, "points": z, "labels": labels.clone(), "kernel": self.config.bandwidth * fitted.pooled,
        }  # fmt: skip
        return self

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        state, d = self.state, self.state["basis"].shape[1]
        drawn = noise(seeds, (1 + d + len(state["mean"]),)).double()
        if self.config.kind == "gaussian":
            z = state["means"][labels] + torch.einsum("nij,nj->ni", state["factors"][labels], drawn[:, 1 : d + 1])
        else:
            z = self._centres(labels, torch.special.ndtr(drawn[:, 0])) + drawn[:, 1 : d + 1] @ state["kernel"].mT
        off = drawn[:, d + 1 :] * state["residual"]
        x = state["mean"] + z @ state["basis"].mT + off - off @ state["basis"] @ state["basis"].mT
        return x.float().clamp(-1.0, 1.0).view(-1, *self.shape)

    def _centres(self, labels: Tensor, uniform: Tensor) -> Tensor:
        """The train point (n, d) at quantile `uniform` (n,) in (0, 1) among those of each label."""
        order = torch.argsort(self.state["labels"], stable=True)
        counts = torch.bincount(self.state["labels"], minlength=self.n_classes)
        if bool((counts[labels] == 0).any()):
            raise DataError("naive.kind=kernel was asked for a class without train images", expected="at least one")
        starts = counts.cumsum(0) - counts
        at = starts[labels] + (uniform * counts[labels]).long().clamp(max=counts[labels] - 1)
        return self.state["points"][order[at]]

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | y) in nats (n,), of the model before its samples are clipped to [-1, 1]."""
        state, x = self.state, images.flatten(1).double() - self.state["mean"]
        z = x @ state["basis"]
        d, dim = z.shape[1], x.shape[1]
        left = (x.square().sum(1) - z.square().sum(1)).clamp(min=0.0)
        off = -0.5 * left / state["residual"] ** 2 - (dim - d) * (state["residual"].log() + 0.5 * math.log(2 * math.pi))
        if self.config.kind == "gaussian":
            return off + _normal(z - state["means"][labels], state["factors"][labels])
        out = torch.empty(len(z), dtype=torch.float64)
        for c in set(labels.tolist()):
            rows, own = labels == c, state["points"][state["labels"] == c]
            # In coordinates where the kernel is the identity, a distance is all that a density takes.
            near, seen = (torch.linalg.solve_triangular(state["kernel"], p.mT, upper=False).mT for p in (z[rows], own))
            logs = -0.5 * torch.cdist(near, seen).square() - state["kernel"].diagonal().log().sum()
            out[rows] = torch.logsumexp(logs, 1) - math.log(max(1, len(own))) - 0.5 * d * math.log(2 * math.pi)
        total: Tensor = off + out
        return total

    def tensors(self) -> dict[str, Tensor]:
        return self.state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.state = tensors


def _normal(gaps: Tensor, factors: Tensor) -> Tensor:
    """log N(gap; 0, L L^T) (n,) for gaps (n, d) and lower factors L (n, d, d)."""
    solved = torch.linalg.solve_triangular(factors, gaps.unsqueeze(-1), upper=False).squeeze(-1)
    logdet = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    out: Tensor = -0.5 * solved.square().sum(-1) - logdet - 0.5 * gaps.shape[-1] * math.log(2 * math.pi)
    return out
