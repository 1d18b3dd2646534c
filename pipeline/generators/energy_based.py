"""Energy-based model: a network tilts a Gaussian of each class (Xie et al., 2016; Grathwohl et al., 2020, JEM, eq. 5).

    p(x | y) = exp(-E(x, y)) / Z_y,   E(x, y) = -f(x)[y] - log N(x; m_y, S_y + s^2 I),   x = image + s e,  e ~ N(0, I)
    p(y | x) = softmax_y(-E(x, y))                                         one energy says which class, and how likely
    -d log p(x | y) / d theta = dE(x, y) - E_{x' ~ p(. | y)} dE(x', y)         (Hinton, 2002; JEM, eq. 2)
    L = mean E(x, y) - mean E(x', y) - label_weight log p(y | x) + energy_weight mean f^2

The images x' come from Langevin chains that persist from step to step (Tieleman, 2008; Du & Mordatch, 2019, a replay buffer),

    x' <- x' - (h / 2) dE(x', y) / dx' + sqrt(h) e,    h = step_size * s^2         (Welling & Teh, 2011; JEM, eq. 3)

each of one class for good; a share `restart` of those in use begins anew at the Gaussian (Nijkamp et al., 2019). The Gaussian
makes Z_y finite, since f grows linearly at most; f = 0 at first, so that learning starts at the naive model.

A new image starts at its class's Gaussian too, never at a kept chain, walks `sample_steps` of Langevin and then jumps to the
mean of all images that the noise may have hidden there (Miyasawa, 1961; Saremi & Hyvärinen, 2019):

    E[image | x] = x - s^2 dE(x, y) / dx

Energies are known up to the constants log Z_y. The cross-entropy term makes them comparable between classes, as the logits of
a classifier that sees classes as often as they are drawn (class_power).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Share
from pipeline.core.seeds import derive, noise, rng, torch_stream
from pipeline.errors import ConfigError, Diverged
from pipeline.generators.shared import augmentation, gaussians
from pipeline.generators.shared.base import GenerativeModel, Traits
from pipeline.generators.shared.batches import Batch, Decay, Precision, Rate, Trained, blockwise, train
from pipeline.runtime.training import autocast, device

NAME = "energy_based"
BOUND = 5.0  # chains of images in [-1, 1] stay within BOUND (1 + noise) unless they run away


class EnergyBasedConfig(Trained):
    """The section `energy_based` of params.yaml."""

    width: Count = 32
    """channels at full resolution"""
    depth: Annotated[int, Field(ge=0)] = 1
    """residual blocks a resolution"""
    patch: Count = 2
    """space-to-depth factor at the input"""
    noise: Annotated[float, Field(ge=0.01)] = 0.3
    """standard deviation of the noise on images in [-1, 1]; the last jump takes it off"""
    components: Count = 32
    """principal components of the Gaussian that the network tilts; the rest is isotropic"""
    shrinkage: Share = 0.2
    """weight of the pooled covariance in that of each class, at least"""
    chains: Count = 128
    """persistent Langevin chains a class, at least batch_images"""
    chain_steps: Count = 10
    """Langevin steps of each chain in use, an optimiser step"""
    step_size: Annotated[float, Field(gt=0.0, lt=4.0)] = 0.5
    """of Langevin, in units of noise^2; from 4 on it cannot be stable"""
    restart: Share = 0.05
    """share of the chains in use that begin anew at the Gaussian"""
    label_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """weight of the cross-entropy of p(y | x), beside the contrast"""
    energy_weight: Annotated[float, Field(ge=0.0)] = 0.01
    """weight of the squared energies, which keeps them small"""
    sample_steps: Count = 60
    """Langevin steps of a new image"""
    steps: Count = 800
    """optimiser steps"""
    lr: Rate = 0.003
    """learning rate of AdamW, warmed up, then cosine to 0"""
    ema: Decay = 0.99
    """decay of the weights' moving average, per step"""
    augment: Share = 0.0
    """probability of each non-leaking augmentation"""
    precision: Precision = "fp32"
    """auto | fp32 | bf16"""


class Block(nn.Module):
    """x + conv(silu(conv(silu(x)))): smooth, since chains follow its slope; no batch norm, which would tie rows together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> the same shape."""
        out: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return out


class Gaussians(nn.Module):
    """N(m_y, S_y + s^2 I) for each class, in the plane of the first principal components; isotropic around it.

    S_y is drawn towards the pooled covariance (pipeline/generators/shared/gaussians.py).
    """

    mean: Tensor
    basis: Tensor
    centres: Tensor
    whiten: Tensor
    around: Tensor

    def __init__(self, dimensions: int, n_classes: int, components: int) -> None:
        super().__init__()
        d = min(components, dimensions)
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("basis", torch.zeros(dimensions, d))
        self.register_buffer("centres", torch.zeros(n_classes, d))
        self.register_buffer("whiten", torch.eye(d).repeat(n_classes, 1, 1))  # L^-1 of S_y + s^2 I = L L^T
        self.register_buffer("around", torch.tensor(1.0))  # standard deviation outside the plane

    def fit(self, images: Tensor, labels: Tensor, *, noise: float, shrinkage: float) -> None:
        """Fit to images (n, c, h, w) and labels (n,), widened by noise of standard deviation s = `noise`."""
        x, d, s2 = images.flatten(1).double(), self.basis.shape[1], noise**2
        n, dim = x.shape
        _, singular, across = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        basis = F.pad(across[:d].mT, (0, max(0, d - len(across))))  # empty directions, where images are few, hold nothing
        left = singular[d:].square().sum() / (max(1, n - 1) * max(1, dim - d))
        z = (x - x.mean(0)) @ basis
        fitted = gaussians.fit(z, labels, len(self.centres), shrinkage=shrinkage, ridge=s2)
        self.whiten.copy_(torch.linalg.solve_triangular(fitted.factors, torch.eye(d).double(), upper=False))
        self.mean.copy_(x.mean(0))
        self.basis.copy_(basis)
        self.centres.copy_(fitted.means)
        self.around.copy_((left + s2).sqrt())

    def energy(self, x: Tensor, labels: Tensor) -> Tensor:
        """-log N(x; m_y, S_y + s^2 I) (n, k) up to one constant, for x (n, c, h, w) and k classes a row, labels (n, k)."""
        x = x.flatten(1) - self.mean
        z = x @ self.basis
        left = x.square().sum(1) - z.square().sum(1)
        whiten = self.whiten[labels]
        white = (whiten @ (z[:, None] - self.centres[labels])[..., None]).squeeze(-1)
        volume = whiten.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        out: Tensor = 0.5 * (white.square().sum(-1) + (left / self.around.square())[:, None]) - volume
        return out

    def draw(self, labels: Tensor, e: Tensor) -> Tensor:
        """x (n, c, h, w) of the classes `labels` (n,) from standard normal noise e of that shape."""
        off = e.flatten(1)
        z = off @ self.basis
        inside = torch.linalg.solve_triangular(self.whiten[labels], z[..., None], upper=False).squeeze(-1)
        out: Tensor = self.mean + (self.centres[labels] + inside) @ self.basis.mT
        return (out + self.around * (off - z @ self.basis.mT)).view_as(e)


class Energy(nn.Module):
    """E(x, y, a) for noisy images x, classes y and augmentations a."""

    log_prior: Tensor

    def __init__(self, config: EnergyBasedConfig, shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        (c, h, w), width, patch = shape, config.width, config.patch
        self.patch, self.precision = patch, config.precision
        self.stem = nn.Conv2d(c * patch**2, width, 3, padding=1)
        self.condition = nn.Linear(augmentation.CONDITIONS, width, bias=False)
        self.body = nn.Sequential(
            *(Block(width) for _ in range(config.depth)), nn.SiLU(), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            *(Block(2 * width) for _ in range(config.depth)), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        across = 2 * width * ((h // patch + 1) // 2) * ((w // patch + 1) // 2)
        self.head = nn.Linear(across, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.reference = Gaussians(c * h * w, n_classes, config.components)
        self.register_buffer("log_prior", torch.zeros(n_classes))  # of the classes as they are drawn in the fit

    def tilt(self, x: Tensor, conditions: Tensor) -> Tensor:
        """f (n, k) of x (n, c, h, w) under conditions (n, a)."""
        with autocast(self.precision, x.device):
            stem = self.stem(F.pixel_unshuffle(x, self.patch)) + self.condition(conditions)[:, :, None, None]
            out: Tensor = self.head(self.body(stem))
        return out.float()

    def forward(self, x: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        """E (n,) of x (n, c, h, w), labels (n,) and conditions (n, a)."""
        at = labels[:, None]
        out: Tensor = (self.reference.energy(x, at) - self.tilt(x, conditions).gather(1, at)).squeeze(1)
        return out


class Chains(nn.Module):
    """Persistent chains: images (k, m, c, h, w) and conditions (k, m, a), m for each of k classes; a row keeps its class."""

    images: Tensor
    conditions: Tensor

    def __init__(self, images: Tensor, conditions: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images)
        self.register_buffer("conditions", conditions)

    def rows(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Chains (n,) of the classes `labels` (n,), none of a class twice, since both ends could not be kept."""
        order = torch.rand(self.images.shape[:2], generator=stream).argsort(1)
        same = labels[:, None] == labels
        rank = same.tril(-1).sum(1).cpu()
        return order[labels.cpu(), rank].to(labels.device)


def slope(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """dE / dx, of the shape of x, for energies (n,) of rows that do not touch each other."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x)[0]


def langevin(energy: Callable[[Tensor], Tensor], x: Tensor, draws: Iterable[Tensor], step: float) -> Tensor:
    """x after one step of the unadjusted Langevin algorithm for each draw of standard normal noise of its shape.

    Its law tends to exp(-E) / Z up to an error of first order in `step`: variance v becomes v / (1 - step / 4v).
    """
    for e in draws:
        x = x - 0.5 * step * slope(energy, x) + step**0.5 * e
    return x


class EnergyBased(GenerativeModel):
    """Class-conditional energy-based model."""

    traits = Traits(density="unnormalised", likelihood="none")
    name = NAME
    Config = EnergyBasedConfig
    config: EnergyBasedConfig

    def build(self) -> None:
        """Raises ConfigError where the patch does not divide the image, or a batch may need more chains than a class has."""
        config, (_, height, width) = self.config, self.shape
        if height % config.patch or width % config.patch:
            raise ConfigError(
                f"data.image_size={height} with {NAME}.patch={config.patch}",
                expected=f"a multiple of {config.patch}",
                remedy=f"set {NAME}.patch=1",
            )
        if config.chains < config.batch_images:
            raise ConfigError(
                f"{NAME}.chains={config.chains} with batch_images={config.batch_images}",
                expected="as many chains a class as images a batch, or more",
                remedy=f"set {NAME}.chains={config.batch_images}",
            )
        self.network = self._network(seed=0)
        self.chains: Chains | None = None  # a fit makes them

    def _network(self, seed: int) -> Energy:
        with torch_stream(seed, NAME, "weights"):
            return Energy(self.config, self.shape, self.n_classes)

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        config, where = self.config, device()
        energy = self._network(seed)
        energy.reference.fit(images, labels, noise=config.noise, shrinkage=config.shrinkage)
        energy.log_prior.copy_(torch.bincount(labels, minlength=self.n_classes).log() * (1 - config.class_power))
        chains = self._start(energy.reference, rng(seed, NAME, "chains"))
        both = nn.ModuleDict({"energy": energy, "chains": chains})

        def loss(batch: Batch) -> Tensor:
            y, n = batch.labels, len(batch.labels)
            draws = torch.randn(config.chain_steps + 2, n, *self.shape, generator=batch.rng).to(where)
            anew = (torch.rand(n, generator=batch.rng) < config.restart).to(where)
            rows = chains.rows(y, batch.rng)
            made, told = chains.images[y, rows], chains.conditions[y, rows]
            made = torch.where(anew.view(-1, 1, 1, 1), energy.reference.draw(y, draws[0]), made)
            told = torch.where(anew[:, None], batch.conditions, told)
            made = self._walk(lambda x: energy(x, y, told), made, draws[2:], f"at step {batch.step}")
            chains.images[y, rows], chains.conditions[y, rows] = made, told
            real = batch.images + config.noise * draws[1]
            return self._loss(energy, (real, batch.conditions), (made, told), y)

        train(both, config, (images, labels), loss, weight_decay=0.01, seed=seed, name=NAME, folder=folder)
        self.network, self.chains = energy, chains
        return self

    def _start(self, reference: Gaussians, stream: torch.Generator) -> Chains:
        """Chains of all classes, drawn from the Gaussians, under augmentations as frequent as those of the batches."""
        m, labels = self.config.chains, torch.arange(self.n_classes).repeat_interleave(self.config.chains)
        images = reference.draw(labels, torch.randn(len(labels), *self.shape, generator=stream))
        _, conditions = augmentation.random_maps(len(labels), self.config.augment, stream)
        return Chains(images.view(-1, m, *self.shape), conditions.view(-1, m, augmentation.CONDITIONS))

    def _loss(self, energy: Energy, real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        """L for images and conditions, real and made, both of the classes y (n,)."""
        x, conditions = (torch.cat(pair) for pair in zip(real, made, strict=True))
        f, every = energy.tilt(x, conditions), torch.arange(self.n_classes, device=x.device).expand(len(y), -1)
        own = f.gather(1, torch.cat([y, y])[:, None]).view(2, -1)
        # The Gaussian's energies have no weights to learn, so that they need not stand in the contrast.
        contrast = own[1].mean() - own[0].mean()
        surprise = F.cross_entropy(f[: len(y)] - energy.reference.energy(real[0], every), y)
        return contrast + self.config.label_weight * surprise + self.config.energy_weight * own.square().mean()

    def _walk(self, energy: Callable[[Tensor], Tensor], x: Tensor, draws: Iterable[Tensor], when: str) -> Tensor:
        """Chains x after a step for each draw. Raises Diverged where they run away, or oscillate about a slope too steep."""
        config = self.config
        x = langevin(energy, x, draws, config.step_size * config.noise**2)
        farthest, bound = float(x.abs().max()), BOUND * (1 + config.noise)
        if not farthest < bound:  # so that NaN is caught
            raise Diverged(
                f"{NAME}: a Langevin chain reached {farthest:.3g} {when}", expected=f"pixels within {bound:.3g}",
                remedy=f"lower {NAME}.lr or step_size in params.yaml, or raise energy_weight",
            )  # fmt: skip
        return x

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Raises Diverged where the learned energy is too steep for the step."""
        config, network = self.config, self.network

        def make(y: Tensor, own: list[int]) -> Tensor:
            def energy(x: Tensor) -> Tensor:
                out: Tensor = network(x, y, augmentation.unmoved(y))
                return out

            draws = (
                noise([derive(seed, NAME, k) for seed in own], self.shape).to(y.device) for k in range(config.sample_steps + 1)
            )
            x = network.reference.draw(y, next(draws))
            x = self._walk(energy, x, draws, "when sampling")
            return (x - config.noise**2 * slope(energy, x)).clamp(-1.0, 1.0)

        return blockwise(network, config, make, labels, seeds, self.shape)

    @torch.no_grad()
    def energy(self, images: Tensor, labels: Tensor) -> Tensor:
        """E(x, y) float64 (n,) in nats up to log Z_y, images taken as they are, without augmentation.

        The cross-entropy made softmax(-E) the p(y | x) of classes as the fit drew them; their prior is taken off here, so that
        each class is as likely beforehand as any other.
        """
        size, where = self.config.block_images, device()
        network, out = self.network.to(where).eval(), []
        for x, y in zip(torch.split(images, size), torch.split(labels, size), strict=True):
            x, y = x.to(where), y.to(where)
            drawn = network(x, y, augmentation.unmoved(y))
            out.append((drawn + network.log_prior[y]).cpu())
        return torch.cat(out).double() if len(images) else torch.empty(0, dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)
