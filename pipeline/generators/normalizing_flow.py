"""A normalizing flow: an invertible map of images to Gaussian noise, with its exact density (Rezende & Mohamed, 2015).

    log p(x | y) = log N(u; mu_y, I) + log |det du/dx|,    u = f_L ∘ … ∘ f_1 ∘ whiten ∘ logit(x~)    (their eq. 3)

logit     dequantised images to the whole line                                          (pipeline/generators/shared/density.py)
whiten    z = S^-1 B^T (x - m): the first d principal directions B, turned and scaled so that the covariance within the
          classes is the identity; the other D - d directions stay Gaussian, all of one variance s^2
f_i       spline coupling: half of z moves by monotone rational-quadratic splines whose knots, shift and scale are a function
          of the other half, the class and the augmentation          (Dinh et al., 2017, eq. 4-5; Durkan et al., 2019, sec. 3)

All couplings start as the identity, so that an unfitted flow is the Gaussian of linear discriminant analysis, and fitting adds
what that misses. What holds it back on few images: Gaussian noise on z while fitting, the bandwidth of a kernel density
(Rothfuss et al., 2019); dropout, weight decay and averaged weights; augmentation that the couplings are told.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.transforms import (
    ComposedTransform,
    CouplingTransform,
    DependentTransform,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
)

from pipeline.config import Count, Share
from pipeline.core.seeds import noise as noise_of
from pipeline.core.seeds import rng, torch_stream
from pipeline.generators.shared import augmentation, density
from pipeline.generators.shared.base import GenerativeModel, Traits
from pipeline.generators.shared.batches import Batch, Decay, Precision, Trained, blockwise, train
from pipeline.generators.shared.gaussians import class_means
from pipeline.runtime.parallel import Dropout, share
from pipeline.runtime.training import autocast, device, threads

NAME = "normalizing_flow"
FLOOR = 1e-6  # least variance of a logit: constant pixels keep a density


class NormalizingFlowConfig(Trained):
    """The section `normalizing_flow` of params.yaml."""

    components: Annotated[int, Field(ge=2)] = 64
    """principal directions that the flow moves; the rest is Gaussian noise of one variance"""
    couplings: Count = 4
    """spline couplings, each of which moves half of the directions"""
    width: Count = 128
    """units of a coupling's network"""
    bins: Annotated[int, Field(ge=2)] = 4
    """pieces of a spline"""
    dropout: Share = 0.0
    """share of units dropped inside the couplings' networks"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """of matrices, not of gains and biases"""
    shrinkage: Annotated[float, Field(ge=0.0)] = 0.3
    """added to every variance before whitening, in units of their mean"""
    noise: Annotated[float, Field(ge=0.0)] = 0.45
    """Gaussian noise while fitting, in units of a class's spread: the bandwidth of a kernel density"""
    temperature: Annotated[float, Field(ge=0.0)] = 0.75
    """scale of the noise when sampling: 1 is the model itself, lower is purer and less varied"""
    steps: Count = 1400
    """optimiser steps"""
    ema: Decay = 0.99
    """decay of the weights' moving average, per step"""
    augment: Share = 0.0
    """probability of each non-leaking augmentation"""
    precision: Precision = "fp32"
    """auto | fp32 | bf16: bf16 samples are not quite those of the exact density"""


class Whitening(nn.Module):
    """x = m + B S z + s (I - B B^T) e: coordinates z (n, d) in the plane of B, isotropic e off it. Fitted once, then fixed."""

    mean: Tensor
    basis: Tensor
    scale: Tensor
    residual: Tensor

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.off = dim - components  # dimensions off the plane
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim, components))
        self.register_buffer("scale", torch.ones(components))
        self.register_buffer("residual", torch.ones(()))

    def fit(self, x: Tensor, labels: Tensor, shrinkage: float) -> None:
        """Take directions and scales from x (n, D) float64; `shrinkage` times the mean variance is added to every variance."""
        n, dim = x.shape
        d = self.basis.shape[1]
        mean = x.mean(0)
        _, _, basis = torch.svd_lowrank(x - mean, q=min(d, n), niter=4)
        # Fewer images than components: any orthonormal directions complete the plane.
        basis = torch.linalg.qr(torch.cat([basis, torch.randn(dim, d).to(basis)], 1)).Q[:, :d]
        plane = (x - mean) @ basis
        inner = plane - class_means(plane, labels, int(labels.max()) + 1)[labels]
        freedom = max(1, n - int(labels.bincount().count_nonzero()))
        left = ((x - mean).square().sum() - plane.square().sum()).clamp(min=0.0) / n
        ridge = FLOOR + shrinkage * (inner.square().sum() / freedom + left) / dim
        variances, turn = torch.linalg.eigh(inner.mT @ inner / freedom)
        self.mean.copy_(mean)
        self.basis.copy_(basis @ turn)
        self.scale.copy_((variances.clamp(min=0.0) + ridge).sqrt())
        self.residual.copy_((left / max(1, self.off) + ridge).sqrt())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, D) -> (z (n, d), log-density off the plane plus log |det dz/dx| within it (n,))."""
        centred = x - self.mean
        plane = centred @ self.basis
        logdet = -self.scale.log().sum()
        if not self.off:
            return plane / self.scale, logdet.expand(len(x))
        outside = (centred - plane @ self.basis.mT).square().sum(1) / self.residual**2
        return plane / self.scale, logdet - 0.5 * outside - self.off * (self.residual.log() + 0.5 * math.log(2 * math.pi))

    def inverse(self, z: Tensor, e: Tensor) -> Tensor:
        """z (n, d), e (n, D) -> x (n, D)."""
        within = (z * self.scale) @ self.basis.mT
        return self.mean + within + self.residual * (e - e @ self.basis @ self.basis.mT)


class Coupling(nn.Module):
    """One coupling of z (n, d): where `mask` is true z stays and says, with class and conditions, how the rest moves."""

    mask: Tensor

    def __init__(self, mask: Tensor, n_classes: int, config: NormalizingFlowConfig) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        kept, width, bins = int(mask.sum()), config.width, config.bins
        self.sizes = [1, 1, bins, bins, bins - 1]  # shift, scale, widths, heights, slopes
        self.read = nn.Linear(kept, width)
        self.label = nn.Embedding(n_classes, width)
        self.condition = nn.Linear(augmentation.CONDITIONS, width, bias=False)
        self.dropout = Dropout(config.dropout)
        self.hidden = nn.Linear(width, width)
        self.write = nn.Linear(width, (len(mask) - kept) * sum(self.sizes))
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)
        nn.init.normal_(self.label.weight, std=0.1)

    def forward(self, labels: Tensor, conditions: Tensor) -> Transform:
        """The map for labels (n,) and conditions (n, CONDITIONS)."""
        transform: Transform = CouplingTransform(
            partial(self._univariate, self.label(labels) + self.condition(conditions)), self.mask
        )
        return transform

    def _univariate(self, context: Tensor, kept: Tensor) -> Transform:
        h = self.dropout(F.silu(self.read(kept) + context))
        h = self.dropout(F.silu(h + self.hidden(h)))
        phi = self.write(h).to(kept).unflatten(-1, (-1, sum(self.sizes)))
        shift, scale, widths, heights, slopes = phi.split(self.sizes, -1)
        affine = MonotonicAffineTransform(shift.squeeze(-1), scale.squeeze(-1))
        spline = MonotonicRQSTransform(widths, heights, slopes)
        transform: Transform = DependentTransform(ComposedTransform(affine, spline), 1)
        return transform


class Flow(nn.Module):
    """Whitening, couplings, and the means (k, d) of the base."""

    def __init__(self, dim: int, n_classes: int, config: NormalizingFlowConfig) -> None:
        super().__init__()
        d = min(config.components, dim)
        self.whitening = Whitening(dim, d)
        halves = [torch.randperm(d) < d // 2 for _ in range(math.ceil(config.couplings / 2))]
        masks = [mask for half in halves for mask in (half, ~half)][: config.couplings]
        self.couplings = nn.ModuleList(Coupling(mask, n_classes, config) for mask in masks)
        # One row of numbers, since weight decay is for matrices: it would draw rare classes' means to the common one.
        self.centres = nn.Parameter(torch.zeros(n_classes * d))
        self.n_classes = n_classes

    @property
    def means(self) -> Tensor:
        """mu (k, d)."""
        return self.centres.view(self.n_classes, -1)

    def transform(self, labels: Tensor, conditions: Tensor) -> ComposedTransform:
        """z -> u (n, d)."""
        return ComposedTransform(*(coupling(labels, conditions) for coupling in self.couplings))

    def log_prob(self, z: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        """log p(z | y, a) (n,) of whitened coordinates z (n, d)."""
        u, logdet = self.transform(labels, conditions).call_and_ladj(z)
        out: Tensor = logdet - 0.5 * (u - self.means[labels]).square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return out


class NormalizingFlow(GenerativeModel):
    """Class-conditional spline-coupling flow."""

    traits = Traits(density="explicit", likelihood="exact", data_parallel=True)
    name = NAME
    Config = NormalizingFlowConfig
    config: NormalizingFlowConfig

    def build(self) -> None:
        self.network = self._network(seed=0)

    def _network(self, seed: int) -> Flow:
        with torch_stream(seed, NAME, "weights"):
            return Flow(math.prod(self.shape), self.n_classes, self.config)

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        config, where, dim = self.config, device(), math.prod(self.shape)
        self.network = network = self._network(seed)
        with threads(config.threads), torch_stream(seed, NAME, "whitening"), torch.no_grad():
            x, _ = density.to_logits(density.dequantise(images, rng(seed, NAME, "whitening")).double().flatten(1))
            network.whitening.fit(x, labels, config.shrinkage)
            z, _ = copy.deepcopy(network.whitening).double()(x)
            network.centres.copy_(class_means(z, labels, self.n_classes).flatten())

        def loss(batch: Batch) -> Tensor:
            x, slope = density.to_logits(density.dequantise(batch.images, batch.rng))
            z, rest = network.whitening(x.flatten(1))
            z = z + config.noise * torch.randn(z.shape, generator=batch.rng).to(where)
            z, rest, slope, labels, conditions = share(z, rest, slope, batch.labels, batch.conditions)
            with autocast(config.precision, where):
                log_prob = network.log_prob(z, labels, conditions)
            out: Tensor = -(log_prob + rest + slope).mean() / dim
            return out

        decay = config.weight_decay
        train(network, config, (images, labels), loss, weight_decay=decay, seed=seed, name=NAME, folder=folder)
        return self

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Base noise times `temperature`, back through the flow: 1 is the model itself, 0 one image a class."""
        config, network, d = self.config, self.network, self.network.whitening.basis.shape[1]

        def make(y: Tensor, own: list[int]) -> Tensor:
            noise = config.temperature * noise_of(own, (d + math.prod(self.shape),)).to(y.device)
            with autocast(config.precision, y.device):
                z = network.transform(y, augmentation.unmoved(y)).inv(network.means[y] + noise[:, :d])
            return density.from_logits(network.whitening.inverse(z.float(), noise[:, d:])).view(-1, *self.shape)

        return blockwise(network, config, make, labels, seeds, self.shape)

    @torch.no_grad()
    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | y) in nats (n,), computed in float64; of the model before its samples are clipped to [-1, 1]."""
        network = copy.deepcopy(self.network).cpu().double().eval()

        def block(images: Tensor, labels: Tensor) -> Tensor:
            x, slope = density.to_logits(images.double().flatten(1))
            z, rest = network.whitening(x)
            none = torch.zeros(len(x), augmentation.CONDITIONS, dtype=torch.float64)
            out: Tensor = network.log_prob(z, labels, none) + rest + slope
            return out

        size = self.config.block_images  # bounds the memory of the splines' knots
        with threads(self.config.threads):
            starts = range(0, len(images), size)
            done = [block(images[i : i + size].cpu(), labels[i : i + size].cpu()) for i in starts]
        return torch.cat(done) if done else torch.empty(0, dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)
